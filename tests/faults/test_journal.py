"""A worker whose journal can't go on ends with an exit code that its master and a supervisor notice."""

import pytest

from tests.faults.rig.broken_journal import BREAKS, FOLDER
from tests.faults.rig.scenario import ACTORS, TIMEOUT, Scenario, gated, mixed

ITEMS = 300


@pytest.mark.parametrize("part", ["acknowledge", "attempts"])
def test_a_worker_that_cant_record_ends(part: str, scenario: Scenario) -> None:
    """It does not stay, holding messages: both processes end, the code is 1, the log says why, others do the work."""
    worker = scenario.start_worker(
        processes=2,
        env={BREAKS: part, FOLDER: str(scenario.folder)},
        modules=(ACTORS, "tests.faults.rig.broken_journal"),
    )
    gate = scenario.folder / "gate"
    job = scenario.submit("work", gated(mixed(ITEMS), gate, 100))
    with scenario.watch(job) as watcher:
        scenario.wait_at_work(job, 20, 100, threads=2 * 8)
        (scenario.folder / "broken").touch()
        gate.touch()
        assert worker.process.child is not None
        assert worker.process.child.wait(TIMEOUT) == 1
        said = scenario.log()
        assert "the journal can't go on" in said
        assert "this worker takes no more messages and ends" in said
        (scenario.folder / "broken").unlink()
        scenario.start_worker()
        scenario.assert_mixed_completed(job, ITEMS, watcher=watcher)
    print(f"{scenario.run_log.repeated(job.id)} runs twice")


def test_a_worker_that_has_lost_a_thread_says_so_and_is_replaced(scenario: Scenario) -> None:
    """It does not go on with fewer threads, or with none, while it beats and holds messages."""
    worker = scenario.start_worker(threads=2, modules=(ACTORS, "tests.faults.rig.ending_middleware"))
    job = scenario.submit("work", [{"number": n} for n in range(100)])
    assert worker.process.child is not None
    assert worker.process.child.wait(TIMEOUT) == 1
    why = "1 of its 2 worker threads ended by an error that Dramatiq does not catch"
    assert f"this worker must be started again: {why}" in scenario.log()
    assert scenario.sql("SELECT trouble FROM callboard.workers") == [(why,)]
    scenario.start_worker()
    scenario.assert_completed(job, total=100)


def test_an_actor_that_does_not_end_holds_no_worker_up(scenario: Scenario) -> None:
    worker = scenario.start_worker(
        env={BREAKS: "acknowledge", FOLDER: str(scenario.folder)}, modules=(ACTORS, "tests.faults.rig.broken_journal")
    )
    gate = scenario.folder / "gate"
    job = scenario.submit("work", gated([{"number": 0, "seconds": 3600}, {"number": 1}], gate, 1))
    scenario.wait_for(job, lambda status: status["running"] == 2)
    (scenario.folder / "broken").touch()
    gate.touch()
    assert worker.process.child is not None
    assert worker.process.child.wait(TIMEOUT) == 1
    assert "an actor is still running" in scenario.log()
    assert scenario.status(job)["finished_at"] is None
