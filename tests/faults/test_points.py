"""A worker killed at each point of an item's way where something has happened and the next thing has not."""

from collections.abc import Iterator
from typing import Any

from tests.faults.rig.points import HURRY, MARKS, POINTS, Mark, marks
from tests.faults.rig.scene import ACTORS, Scene, fate

#: Two of each where a flush is under way: among fresh messages, and among those that came back.
PLAN = (
    "outcome:3", "claim:3", "claimed:3", "flush:3", "settle:3", "ack:3", "running", "outcome:5", "flush:5", "settle:5",
    "ack:5",
)  # fmt: skip
RECORDED = ("settle", "ack")
ITEMS = 1_500


def some_slow(count: int) -> Iterator[dict[str, Any]]:
    return ({"number": n, "fate": fate(n), "seconds": 0.01 if n % 40 else 0.6} for n in range(count))


def runs_since(on: Scene, mark: Mark) -> list[int]:
    """How often each item of a death's has been begun since."""
    found = []
    for job, item in mark.keys:
        row = on.ledger.conn.execute(
            "SELECT count(*) FROM runs WHERE job = %s AND item = %s AND began > to_timestamp(%s)",
            (job, item, mark.moment),
        ).fetchone()
        found.append(row[0] if row else 0)
    return found


def test_what_is_recorded_never_runs_again_and_what_is_not_does(on: Scene) -> None:
    """At least once for the run, exactly once for the count."""
    marked = on.folder / "marks"
    marked.mkdir()
    env = {POINTS: ",".join(PLAN), MARKS: str(marked), HURRY: "5"}
    job = on.submit("work", some_slow(ITEMS))
    with on.witness(job) as witness:
        on.worker(env=env, modules=(ACTORS, "tests.faults.rig.points"))
        on.until(job, lambda _: len(marks(marked)) == len(PLAN), timeout=240)
        runs = on.prove_mixed(job, ITEMS, witness=witness, timeout=240)
    died = marks(marked)
    assert [mark.point for mark in died] == [point.partition(":")[0] for point in PLAN]
    assert on.starts >= 1 + len(PLAN)
    for mark in died:
        assert mark.keys, mark
        if mark.point == "outcome":
            assert min(runs_since(on, mark)) >= 1, mark
        if mark.point in RECORDED:
            final = {item for item in mark.keys if fate(item[1]) in ("succeed", "skip")}
            assert sum(runs_since(on, mark._replace(keys=sorted(final)))) == 0, mark
    assert "had lost their messages" not in on.said()
    print(
        f"{len(died)} deaths, {runs.total()} runs, {on.ledger.twice(job.id)} of them of an attempt begun before"
    )
