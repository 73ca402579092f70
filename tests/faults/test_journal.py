"""A journal that can't go on: its worker ends with a code that its master and a supervisor notice."""

import pytest

from tests.faults.rig.breakage import BREAKS, MARKS
from tests.faults.rig.scene import ACTORS, TIMEOUT, Scene, mixed

ITEMS = 1_000


@pytest.mark.parametrize("part", ["acknowledge", "attempts"])
def test_a_worker_that_cant_record_ends(part: str, on: Scene) -> None:
    """Not a zombie that holds messages: both processes end, the code is 1, the log says why; others do the work."""
    worker = on.worker(
        processes=2, env={BREAKS: part, MARKS: str(on.folder)}, modules=(ACTORS, "tests.faults.rig.breakage")
    )
    job = on.submit("work", mixed(ITEMS, 0.02))
    with on.witness(job) as witness:
        on.until(job, lambda status: status["succeeded"] > 20)
        (on.folder / "broken").touch()
        assert worker.process.child is not None
        assert worker.process.child.wait(TIMEOUT) == 1
        said = on.said()
        assert "the journal can't go on" in said
        assert "this worker takes no more messages and ends" in said
        assert "exited unexpectedly (code 1)" in said
        (on.folder / "broken").unlink()
        on.worker()
        on.prove_mixed(job, ITEMS, witness=witness)
    print(f"{on.ledger.twice(job.id)} runs twice")


def test_an_actor_that_does_not_end_holds_no_worker_up(on: Scene) -> None:
    worker = on.worker(
        env={BREAKS: "acknowledge", MARKS: str(on.folder)}, modules=(ACTORS, "tests.faults.rig.breakage")
    )
    job = on.submit("work", [{"number": 0, "seconds": 3600}, {"number": 1}])
    (on.folder / "broken").touch()
    assert worker.process.child is not None
    assert worker.process.child.wait(TIMEOUT) == 1
    assert "an actor is still running" in on.said()
    assert on.status(job)["finished_at"] is None
