"""A queue of RabbitMQ is emptied or deleted, with a job at work. See `test_rabbitmq_node` for a node that goes away."""

import re
from collections.abc import Iterator
from typing import Any

from callboard.commands.services import wait_until
from tests.faults.rig.scenario import TIMEOUT, Scenario, gated, mixed
from tests.support.timer import Timer

#: What the product takes to find lost messages, at most.
PROMISED = 60.0
CUT = "Consumer encountered a connection error"
SENT_AGAIN = re.compile(r"(\d+) items had lost their messages")


def sent_again(scenario: Scenario) -> int:
    """How many items the sweep found to have lost their messages."""
    return sum(int(count) for count in SENT_AGAIN.findall(scenario.log()))


def test_a_queue_deleted_in_mid_job(scenario: Scenario) -> None:
    for _ in range(2):
        scenario.start_worker(short_periods=5)
    gate = scenario.folder / "gate"
    job = scenario.submit("work", gated(mixed(600), gate, 250))
    with scenario.watch(job) as watcher:
        scenario.wait_at_work(job, 150, 250, threads=2 * 8)
        gone = scenario.lose_messages(deleted=True)
        gate.touch()
        runs = scenario.assert_mixed_completed(job, 600, watcher=watcher)
    assert gone > 0
    assert wait_until(lambda: sent_again(scenario) >= gone, TIMEOUT), (sent_again(scenario), gone)
    repeated = scenario.run_log.repeated(job.id)
    print(f"{gone} lost, {sent_again(scenario)} sent again, {runs.total()} runs, {repeated} repeated")


def test_a_queue_purged_that_is_never_empty(scenario: Scenario) -> None:
    """With the product's own periods. Messages that still wait in the queue are not sent again: nothing runs twice."""
    scenario.start_worker(env={"CALLBOARD_QUEUE_DEPTH": "100"})
    gate, count = scenario.folder / "gate", 200

    def items() -> Iterator[dict[str, Any]]:
        return ({"number": n, "seconds": 0.3} for n in range(count))

    jobs = [scenario.submit("work", gated(items(), gate, 60))]
    with scenario.watch(jobs[0]) as watcher:
        scenario.wait_at_work(jobs[0], 40, 60, threads=8)
        gone, began = scenario.lose_messages(), Timer()
        gate.touch()

        def found(_: object) -> bool:
            if scenario.status(jobs[-1])["pending"] < count / 2:
                jobs.append(scenario.submit("work", items()))
            return sent_again(scenario) >= gone

        scenario.wait_for(jobs[0], found)
        took, kept_busy = began.seconds, scenario.status(jobs[-1])["pending"]
        runs = scenario.assert_completed(jobs[0], total=count, retries=0, watcher=watcher)
    assert gone > 0
    assert kept_busy > 0
    assert took < PROMISED
    assert sent_again(scenario) == gone
    for job in jobs[1:]:
        runs += scenario.assert_completed(job, total=count, retries=0)
    assert set(runs.values()) == {len(jobs)}  # each item number once in each job
    print(f"{gone} lost, found after {took:.1f} s")
