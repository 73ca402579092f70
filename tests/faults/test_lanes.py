"""Lanes limit the items of a customer at once, also when workers are killed; measured in the actors' own log."""

import time
from collections.abc import Callable
from itertools import accumulate, pairwise

import callboard
from tests.faults.rig.scenario import Scenario
from tests.faults.test_limits import at_once
from tests.support.timer import Timer
from tests.support.workers import wait_until

WIDTH = 3
#: How many items each has; the job is sorted by customer, so the largest stands in front of all others.
CUSTOMERS = {"large": 100, "middle": 40, "small": 20}
OTHERS = CUSTOMERS["middle"] + CUSTOMERS["small"]
#: How many of the items behind those of the largest have ended.
OTHERS_ENDED = (
    f"SELECT count(*) FROM callboard.items WHERE job_id = %s AND state = 'succeeded' AND item >= {CUSTOMERS['large']}"
)


def spans(scenario: Scenario, job: callboard.Job, killed_at: float) -> dict[str, list[tuple[float, float]]]:
    """When each run began and ended, by customer; runs of the worker that was killed ended then."""
    rows = scenario.run_log.conn.execute(
        "SELECT item, extract(epoch FROM began)::float8,"
        " coalesce(extract(epoch FROM ended)::float8, greatest(%s, extract(epoch FROM began)::float8))"
        " FROM runs WHERE job = %s",
        (killed_at, job.id),
    ).fetchall()
    ends = [0, *accumulate(CUSTOMERS.values())]
    return {
        customer: [(began, ended) for item, began, ended in rows if low <= item < high]
        for customer, (low, high) in zip(CUSTOMERS, pairwise(ends), strict=True)
    }


def kill_one_at_the_gate(scenario: Scenario, job: callboard.Job, waits: Callable[[int], bool]) -> float:
    """Kill a worker that has an item in hand of those that wait for the gate; when."""

    def found() -> list[int]:
        rows = scenario.run_log.conn.execute("SELECT item, pid FROM runs WHERE job = %s AND ended IS NULL", (job.id,))
        return [pid for item, pid in rows if waits(item)]

    scenario.wait_for(job, lambda _: bool(found()))
    pids = found()
    victim = next(worker for worker in scenario.workers if not set(pids).isdisjoint(worker.children()))
    (killed_at,) = (
        scenario.run_log.conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone() or ()
    )
    victim.kill()
    return float(killed_at)


def test_a_customer_never_has_more_in_hand_than_may_be_and_blocks_no_other(scenario: Scenario) -> None:
    for _ in range(2):
        scenario.start_worker()
    timer, gate, others = Timer(), scenario.folder / "gate", scenario.folder / "others"
    items = (
        {
            "customer": customer, "seconds": 0.03, "fate": "succeed" if n % 10 else "retry",
            "gate": str(gate if customer == "large" else others),
        }
        for customer, count in CUSTOMERS.items()
        for n in range(count)
    )  # fmt: skip
    with scenario.watch(job := scenario.submit("serve", items, concurrency_by={"customer": WIDTH})) as watcher:
        # As many as may be at once of each, however slowly they start.
        scenario.wait_for(job, lambda status: status["running"] == WIDTH * len(CUSTOMERS))
        others.touch()
        # Nobody waits for those in front: none of the large one's items ends before all others have.
        scenario.wait_for(job, lambda _: scenario.sql(OTHERS_ENDED, job.id) == [(OTHERS,)])
        killed_at = kill_one_at_the_gate(scenario, job, lambda item: item < CUSTOMERS["large"])
        gate.touch()
        opened = time.time()
        scenario.assert_completed(job, total=sum(CUSTOMERS.values()), watcher=watcher, timeout=600)
    found = spans(scenario, job, killed_at)
    assert {customer: at_once(runs) for customer, runs in found.items()} == dict.fromkeys(CUSTOMERS, WIDTH)
    # Places are filled when an item ends, not at the publisher's next look.
    assert max(ended for _, ended in found["large"]) - opened < 60 + timer.stalled
    assert wait_until(lambda: scenario.sql("SELECT count(*) FROM callboard.lanes") == [(0,)], 300)


def test_the_limit_is_set_and_taken_away_on_a_run(scenario: Scenario) -> None:
    scenario.start_worker(processes=2)
    gate = scenario.folder / "gate"
    items = (
        {"customer": "one", "seconds": 0.02, "gate": str(gate) if n >= 50 else ""} for n in range(CUSTOMERS["large"])
    )
    job = scenario.submit("serve", items, concurrency_by="customer=1")
    scenario.wait_for(job, lambda status: status["succeeded"] >= 30)
    assert at_once(spans(scenario, job, 0)["large"]) == 1
    assert job.limit(concurrency_by=None)["limits"] == {}
    scenario.wait_for(job, lambda status: status["running"] > WIDTH)
    gate.touch()
    scenario.assert_completed(job, total=CUSTOMERS["large"])
    assert at_once(spans(scenario, job, 0)["large"]) > WIDTH


def test_only_so_many_customers_are_in_hand_at_once(scenario: Scenario) -> None:
    """The limit also holds when a worker dies that has items of some customers: as many as may be wait for that."""
    customers, items, lanes = 12, 15, 4
    for _ in range(2):
        scenario.start_worker()
    gate = scenario.folder / "gate"
    numbers = range(customers * items)

    def waits(item: int) -> bool:
        return item % customers >= customers - lanes

    job = scenario.submit(
        "serve",
        ({"customer": f"{n % customers}", "seconds": 0.02, "gate": str(gate) if waits(n) else ""} for n in numbers),
        concurrency_by={"customer": 2},
        lanes=lanes,
    )
    held = "SELECT count(DISTINCT item %% %s) FROM runs WHERE job = %s AND ended IS NULL AND item %% %s >= %s"
    which = (customers, job.id, customers, customers - lanes)
    scenario.wait_for(job, lambda _: scenario.run_log.conn.execute(held, which).fetchone() == (lanes,))
    killed_at = kill_one_at_the_gate(scenario, job, waits)
    gate.touch()
    scenario.assert_completed(job, total=customers * items, timeout=600)
    rows = scenario.run_log.conn.execute(
        "SELECT item %% %s, extract(epoch FROM began)::float8,"
        " coalesce(extract(epoch FROM ended)::float8, greatest(%s, extract(epoch FROM began)::float8))"
        " FROM runs WHERE job = %s",
        (customers, killed_at, job.id),
    ).fetchall()
    busy = [len({c for c, began, ended in rows if began <= moment < ended}) for _, moment, _ in rows]
    assert max(busy) == lanes
    for customer in range(customers):
        assert at_once([(began, ended) for c, began, ended in rows if c == customer]) <= 2
    assert wait_until(lambda: scenario.sql("SELECT count(*) FROM callboard.lanes") == [(0,)], 300)
