"""Frozen processes: a worker that is taken for dead and goes on, and a sender in the middle of a transaction."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import callboard
from tests.faults.rig.scenario import Scenario, fate, gated
from tests.support.workers import Worker, wait_until

ITEMS = 60


def row_of(scenario: Scenario, worker: Worker) -> tuple[int, int]:
    """The id of this worker's process in `workers`, and its pid."""
    ((number, pid),) = scenario.sql("SELECT id, pid FROM callboard.workers WHERE pid = ANY(%s)", worker.children())
    return number, pid


def state_of(scenario: Scenario, pid: int) -> tuple[int, str]:
    """The id of the worker with this pid, and whether it lives."""
    ((number, dead),) = scenario.sql("SELECT id, died_at IS NOT NULL FROM callboard.workers WHERE pid = %s", pid)
    return number, "dead" if dead else "alive"


def once(item: int) -> bool:
    """Whether the item ends with its first attempt, if nothing breaks it off."""
    return fate(item) in ("succeed", "skip")


def in_hand(scenario: Scenario, job: callboard.Job, worker: int) -> dict[int, int]:
    """The items that a worker is known to have in hand, each with its attempt."""
    rows = scenario.sql("SELECT item, attempt FROM callboard.running WHERE job_id = %s AND worker = %s", job.id, worker)
    return dict(rows)


def held_until_death(scenario: Scenario, job: callboard.Job, worker: int, pid: int) -> dict[int, int]:
    """What a frozen worker had in hand when it was declared dead, which is at the next sweep.

    Not what it had when it was frozen: a statement that it had sent by then may still be recorded.
    """
    held = in_hand(scenario, job, worker)  # before that sweep, which may be over before the first look
    scenario.call_dead(pid)

    def dead() -> bool:
        nonlocal held
        in_its_hand = in_hand(scenario, job, worker)
        if state_of(scenario, pid) == (worker, "dead"):
            return True
        held = in_its_hand
        return False

    assert wait_until(dead, 300)
    return held


def run_elsewhere(scenario: Scenario, job: callboard.Job, held: dict[int, int]) -> bool:
    """Whether the next attempt at each of these has begun."""
    begun = scenario.run_log.attempt_counts(job.id)
    return all(begun[item, attempt + 1] for item, attempt in held.items())


@pytest.mark.parametrize("until", ["its items run elsewhere", "the job is done"])
def test_frozen_for_longer_than_its_heartbeat_may_then_continued(until: str, scenario: Scenario) -> None:
    """The items that it held run again elsewhere, and count once; the process goes on under its old worker id."""
    frozen, at_work = (scenario.start_worker(short_periods=4, threads=4) for _ in range(2))
    (worker, pid), (other, _) = (row_of(scenario, one) for one in (frozen, at_work))
    # All that comes after the first ones stays in hand until the process stands still.
    gate = scenario.folder / "gate"
    items = ({"number": n, "fate": fate(n)} for n in range(ITEMS))
    job = scenario.submit("work", gated(items, gate, 10))
    with scenario.watch(job) as watcher:
        scenario.wait_for(job, lambda s: s["succeeded"] > 5 and len(in_hand(scenario, job, worker)) == 4)
        os.killpg(frozen.pid, signal.SIGSTOP)
        held = held_until_death(scenario, job, worker, pid)
        gate.touch()
        if until == "the job is done":
            scenario.wait_for(job, lambda status: status["finished_at"] is not None)
        else:
            assert wait_until(lambda: run_elsewhere(scenario, job, held), 300)
        (now,) = scenario.run_log.conn.execute("SELECT clock_timestamp()").fetchone() or ()
        os.killpg(frozen.pid, signal.SIGCONT)
        assert wait_until(lambda: state_of(scenario, pid) == (worker, "alive"), 300)
        scenario.assert_mixed_completed(job, ITEMS, watcher=watcher)
    assert wait_until(lambda: scenario.run_log.unfinished(job.id) == 0, 300)
    late: dict[int, int] = dict(
        scenario.run_log.conn.execute(
            "SELECT item, attempt FROM runs WHERE job = %s AND pid = %s AND began < %s AND ended > %s",
            (job.id, pid, now, now),
        ).fetchall()
    )
    crashed = scenario.sql(
        "SELECT item, attempt FROM callboard.attempts WHERE job_id = %s AND kind = 'crashed'", job.id
    )
    assert dict(crashed) == held
    # It ended what it had in hand, and nothing of that counted: the item had another attempt by then.
    twice = late.items() & held.items()
    assert twice
    kept = {
        item: (attempt, by)
        for item, attempt, by in scenario.sql(
            "SELECT item, attempt, worker FROM callboard.items WHERE job_id = %s", job.id
        )
    }
    for item, attempt in twice:
        if once(item):
            assert kept[item] == (attempt + 1, other)
    assert scenario.status(job)["crashes"] == 0  # acquitted, since each ended by itself
    assert wait_until(lambda: f"worker {worker} is dead" in scenario.log(), 300)
    # And it is as good as new.
    gate = scenario.folder / "another gate"
    more = scenario.submit("work", gated(({"number": n} for n in range(100)), gate, 0))
    ran = "SELECT count(*) > 0 FROM runs WHERE job = %s AND pid = %s"
    scenario.wait_for(more, lambda _: scenario.run_log.conn.execute(ran, (more.id, pid)).fetchone() == (True,))
    gate.touch()
    scenario.assert_completed(more, total=100)
    runs = scenario.run_log.run_counts(job.id).total()
    print(f"{len(held)} items in flight, {len(twice)} ended after all, {runs} runs of {ITEMS}")


#: Freezes in the transaction that stores its second message, which has a key: it holds the actor's standing job.
FROZEN_SENDER = """
import dataclasses, signal, threading
import dramatiq, callboard
from callboard.middleware.submission import enqueue, send_store
from callboard.middleware.tracking import runtime_of

@dramatiq.actor
def work(number): pass

work.send(0)
look = send_store.items_by_key
def freeze(*args):
    send_store.items_by_key = look
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread goes no further
    return look(*args)
send_store.items_by_key = freeze
item = dataclasses.replace(enqueue.new_item(work.message(1), job=0), key="of a producer without Callboard")
runtime_of(work.broker).journal.send(item).result()
"""


def test_a_sender_that_is_frozen_in_a_transaction_holds_up_nobody_for_long(scenario: Scenario) -> None:
    """The database ends its transaction; other jobs, and the same job, go on before that sender does."""
    scenario.start_worker(threads=4)
    sender = subprocess.Popen(
        [sys.executable, "-c", "import callboard; callboard.install()" + FROZEN_SENDER],
        env={**os.environ, **scenario.environment}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert wait_until(lambda: _stopped(sender.pid), 300)
        job = scenario.submit("work", ({"number": n, "seconds": 0.01} for n in range(200)))
        scenario.broker.get_actor("work").send(2)
        scenario.assert_completed(job, total=200)
        standing = "SELECT sum(succeeded) FROM callboard.jobs WHERE standing_on IS NOT NULL"
        assert wait_until(lambda: scenario.sql(standing) == [(2,)], 300)
        assert _stopped(sender.pid)
        os.kill(sender.pid, signal.SIGCONT)
        output, _ = sender.communicate(timeout=300)
    finally:
        sender.kill()
        sender.wait()
    # It tried once more, since nothing of the transaction is stored.
    assert output == ""
    assert wait_until(lambda: scenario.sql(standing) == [(3,)], 300)
    scenario.assert_counters_true()


def _stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
