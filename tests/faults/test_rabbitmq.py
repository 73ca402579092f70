"""RabbitMQ restarted, cut off, emptied, full and gone, with a job at work."""

import re
import time
from collections.abc import Iterator

import pytest

from callboard.commands.services import wait_until
from tests.faults.rig.points import HURRY
from tests.faults.rig.scene import ACTORS, TIMEOUT, Scene, mixed, seconds_since

POINTS = "tests.faults.rig.points"
#: What the product takes to find lost messages, at most.
PROMISED = 60.0
CUT = "Consumer encountered a connection error"
BACK, PUBLISHING = "messages come from RabbitMQ at", "publishing goes on again, after"
SENT_AGAIN = re.compile(r"(\d+) items had lost their messages")


def sent_again(on: Scene) -> int:
    """How many items the sweep found to have lost their messages."""
    return sum(int(count) for count in SENT_AGAIN.findall(on.said()))


@pytest.fixture
def roomy(on: Scene) -> Iterator[Scene]:
    """The scene, with no memory alarm left behind."""
    yield on
    on.node.ctl("set_vm_memory_high_watermark", "0.4")


def connections(on: Scene) -> set[str]:
    """The connections that RabbitMQ knows."""
    return set(on.node.ctl("list_connections", "--no-table-headers", "pid").split())


def test_restarted_in_mid_job(on: Scene) -> None:
    """Once in order and once by SIGKILL; what it had confirmed is there again."""
    for _ in range(2):
        on.worker()
    job = on.submit("work", mixed(4_000, 0.02))
    with on.witness(job) as witness:
        for part, end in ((600, on.node.stop), (2_000, on.node.kill)):
            on.until(job, lambda status: status["succeeded"] > part)
            before, cuts = on.node.pid, on.said().count(CUT)
            end()
            assert wait_until(lambda: on.said().count(CUT) > cuts, TIMEOUT)
            on.node.start()
            assert on.node.pid != before
        runs = on.prove_mixed(job, 4_000, witness=witness)
    assert sent_again(on) == 0
    assert all(worker.output.count(BACK) >= 2 for worker in on.workers)
    assert all(PUBLISHING in worker.output for worker in on.workers)
    print(f"{runs.total()} runs, {on.ledger.twice(job.id)} of them twice")


def test_all_connections_closed(on: Scene) -> None:
    for _ in range(2):
        on.worker()
    job = on.submit("work", mixed(4_000, 0.03))
    cut: set[str] = set()
    with on.witness(job) as witness:
        for part in (300, 1_200):
            on.until(job, lambda status: status["succeeded"] > part)
            before: set[str] = set()

            def complete() -> bool:
                """Two consumers and a publisher of each worker."""
                before.clear()
                before.update(connections(on))
                return len(before) >= 3 * 2

            assert wait_until(complete, TIMEOUT), before
            on.node.ctl("close_all_connections", "--global", "a fault")
            assert wait_until(lambda: before.isdisjoint(connections(on)), TIMEOUT)
            cut |= before
        runs = on.prove_mixed(job, 4_000, witness=witness)
    assert CUT in on.said()
    assert sent_again(on) == 0
    print(f"{len(cut)} connections cut, {runs.total()} runs, {on.ledger.twice(job.id)} of them twice")


def test_a_queue_deleted_in_mid_job(on: Scene) -> None:
    for _ in range(2):
        on.worker(env={HURRY: "5"}, modules=(ACTORS, POINTS))
    job = on.submit("work", mixed(3_000, 0.02))
    with on.witness(job) as witness:
        on.until(job, lambda status: status["succeeded"] > 600)
        gone = on.lose(deleted=True)
        runs = on.prove_mixed(job, 3_000, witness=witness)
    assert gone > 0
    assert sent_again(on) >= gone
    print(
        f"{gone} lost, {sent_again(on)} sent again, {runs.total()} runs, {on.ledger.twice(job.id)} of them twice"
    )


def test_a_queue_purged_that_is_never_empty(on: Scene) -> None:
    """By the product's own periods. What waits in the queue meanwhile is left alone: nothing runs twice."""
    on.worker(env={"CALLBOARD_QUEUE_DEPTH": "300"})
    jobs = [on.submit("work", ({"number": n, "seconds": 0.03} for n in range(1_000)))]
    with on.witness(jobs[0]) as witness:
        on.until(jobs[0], lambda status: status["succeeded"] > 200)
        gone, began = on.lose(), time.monotonic()

        def found(_: object) -> bool:
            if on.status(jobs[-1])["pending"] < 300:
                jobs.append(on.submit("work", ({"number": n, "seconds": 0.03} for n in range(1_000))))
            return sent_again(on) >= gone

        on.until(jobs[0], found)
        took, kept_busy = seconds_since(began), on.status(jobs[-1])["pending"]
        runs = on.prove(jobs[0], total=1_000, retries=0, witness=witness)
    assert gone > 0
    assert kept_busy > 0
    assert took < PROMISED
    assert sent_again(on) == gone
    for job in jobs[1:]:
        runs += on.prove(job, total=1_000, retries=0)
    assert set(runs.values()) == {len(jobs)}  # each item number once in each job
    print(f"{gone} lost, found after {took:.1f} s")


def test_publishers_blocked_by_a_memory_alarm(roomy: Scene) -> None:
    on = roomy
    on.worker()
    job = on.submit("work", mixed(3_000, 0.01))
    with on.witness(job) as witness:
        on.until(job, lambda status: status["succeeded"] > 300)
        on.node.ctl("set_vm_memory_high_watermark", "0.00001")
        blocked = on.submit("work", mixed(200))
        on.until(blocked, lambda status: "blocks publishers" in (status["stalled"] or ""))
        status = on.status(blocked)
        assert re.fullmatch(
            r"RabbitMQ at 127\.0\.0\.1:\d+ blocks publishers: low on memory", status["stalled"]
        ), status["stalled"]
        assert status["succeeded"] == 0
        on.node.ctl("set_vm_memory_high_watermark", "0.4")
        on.prove_mixed(job, 3_000, witness=witness)
        on.prove_mixed(blocked, 200)
    assert sent_again(on) == 0


def test_the_node_gone_while_retries_are_due(on: Scene) -> None:
    """Attempts that end meanwhile are on record; their next wait in the database, and the job says for what."""
    on.worker()
    assert wait_until(on.consumed, TIMEOUT)
    # The queue was declared just now; the log of it lies in the node's memory for two seconds.
    on.node.ctl("eval", "mnesia:sync_log().")
    job = on.submit("work", ({"number": n, "fate": "retry", "seconds": 0.3} for n in range(100)))
    with on.witness(job) as witness:
        on.until(job, lambda status: status["retries"] > 8)
        on.node.kill()
        overdue = (
            "SELECT count(*) FROM callboard.outbox WHERE job_id = %s AND due_at < now() - interval '3 s'"
        )
        on.until(job, lambda _: on.sql(overdue, job.id)[0][0] > 0)
        refused = re.compile(r"RabbitMQ at 127\.0\.0\.1:\d+: .*refused")
        on.until(job, lambda status: refused.match(status["stalled"] or "") is not None)
        on.node.start()
        runs = on.prove(job, total=100, retries=100, witness=witness)
    assert min(runs.values()) == 2
    print(f"{runs.total()} runs of 200 attempts")
