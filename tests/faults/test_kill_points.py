"""A worker is killed at each point of an item's way: after one step, and before the next."""

from collections.abc import Iterator
from typing import Any

from tests.faults.rig.kill_points import Death
from tests.faults.rig.scenario import Scenario, fate

#: Two of each where a flush is under way: among fresh messages, and among those that came back.
PLAN = (
    "outcome:3", "claim:3", "claimed:3", "flush:3", "settle:3", "ack:3", "running", "outcome:5", "flush:5", "settle:5",
    "ack:5",
)  # fmt: skip
RECORDED = ("settle", "ack")
ITEMS = 400


def some_slow(count: int) -> Iterator[dict[str, Any]]:
    return ({"number": n, "fate": fate(n), "seconds": 0.01 if n % 40 else 0.6} for n in range(count))


def runs_since(scenario: Scenario, death: Death) -> list[int]:
    """How often each item of a death's has been begun since."""
    found = []
    for job, item in death.keys:
        row = scenario.run_log.conn.execute(
            "SELECT count(*) FROM runs WHERE job = %s AND item = %s AND began > to_timestamp(%s)",
            (job, item, death.moment),
        ).fetchone()
        found.append(row[0] if row else 0)
    return found


def test_what_is_recorded_never_runs_again_and_what_is_not_does(scenario: Scenario) -> None:
    """At least once for the run, exactly once for the count."""
    job = scenario.submit("work", some_slow(ITEMS))
    with scenario.watch(job) as watcher:
        scenario.start_worker(short_periods=5, kill_points=PLAN)
        jobs = scenario.all_die(PLAN, job, lambda: scenario.submit("work", some_slow(ITEMS)))
        runs = [scenario.assert_mixed_completed(one, ITEMS, watcher=watcher, timeout=600) for one in jobs]
    died = scenario.deaths()
    assert [death.point for death in died] == [point.partition(":")[0] for point in PLAN]
    assert scenario.starts >= 1 + len(PLAN)
    for death in died:
        assert death.keys, death
        if death.point == "outcome":
            assert min(runs_since(scenario, death)) >= 1, death
        if death.point in RECORDED:
            final = {item for item in death.keys if fate(item[1]) in ("succeed", "skip")}
            assert sum(runs_since(scenario, death._replace(keys=sorted(final)))) == 0, death
    assert "had lost their messages" not in scenario.log()
    repeated = sum(scenario.run_log.repeated(one.id) for one in jobs)
    total = sum(one.total() for one in runs)
    print(f"{len(died)} deaths, {total} runs, {repeated} of them of an attempt begun before")
