"""A worker that stands still for longer than its heartbeat may, is taken for dead, and goes on."""

import os
import signal

import pytest

import callboard
from tests.faults.points import HURRY
from tests.faults.scene import ACTORS, Scene, fate
from tests.helpers import Worker, wait_until

ITEMS = 160
LIMIT = 4.0


def row_of(on: Scene, worker: Worker) -> tuple[int, int]:
    """The id of this worker's process in `workers`, and its pid."""
    ((number, pid),) = on.sql("SELECT id, pid FROM callboard.workers WHERE pid = ANY(%s)", worker.children())
    return number, pid


def state_of(on: Scene, pid: int) -> tuple[int, str]:
    """The id of the worker with this pid, and whether it lives."""
    ((number, dead),) = on.sql("SELECT id, died_at IS NOT NULL FROM callboard.workers WHERE pid = %s", pid)
    return number, "dead" if dead else "alive"


def once(item: int) -> bool:
    """Whether one attempt that nobody breaks off is all that an item needs."""
    return fate(item) in ("succeed", "skip")


def in_hand(on: Scene, job: callboard.Job, worker: int) -> list[int]:
    return [
        row[0]
        for row in on.sql(
            "SELECT item FROM callboard.running WHERE job_id = %s AND worker = %s ORDER BY item",
            job.id,
            worker,
        )
    ]


def begun_again(on: Scene, job: callboard.Job, items: list[int]) -> bool:
    """Whether each of these has begun more than once."""
    return all(on.ledger.runs(job.id)[item] > 1 for item in items)


@pytest.mark.parametrize("until", ["its items run elsewhere", "the job is done"])
def test_frozen_for_longer_than_its_heartbeat_may_then_continued(until: str, on: Scene) -> None:
    """What it held runs again elsewhere, and counts once; it comes back to life as the worker that it was."""
    env, modules = {HURRY: str(LIMIT)}, (ACTORS, "tests.faults.points")
    frozen, at_work = (on.worker(env=env, modules=modules, threads=4) for _ in range(2))
    (worker, pid), (other, _) = (row_of(on, one) for one in (frozen, at_work))
    job = on.submit("work", ({"number": n, "fate": fate(n), "seconds": 0.4} for n in range(ITEMS)))
    with on.witness(job) as witness:
        on.until(job, lambda s: s["succeeded"] > 10 and len(in_hand(on, job, worker)) == 4)
        os.killpg(frozen.pid, signal.SIGSTOP)
        held = in_hand(on, job, worker)
        assert wait_until(lambda: state_of(on, pid) == (worker, "dead"), 30)
        if until == "the job is done":
            on.until(job, lambda status: status["finished_at"] is not None)
        else:
            assert wait_until(lambda: begun_again(on, job, held), 30)
        (now,) = on.ledger.conn.execute("SELECT clock_timestamp()").fetchone() or ()
        os.killpg(frozen.pid, signal.SIGCONT)
        assert wait_until(lambda: state_of(on, pid) == (worker, "alive"), 30)
        on.prove_mixed(job, ITEMS, witness=witness)
    assert wait_until(lambda: on.ledger.open(job.id) == 0, 30)
    late = on.ledger.conn.execute(
        "SELECT item FROM runs WHERE job = %s AND pid = %s AND attempt = 1 AND began < %s AND ended > %s",
        (job.id, pid, now, now),
    )
    twice = {row[0] for row in late}
    # It ended what it had in hand, and nothing of that counted: the item had another attempt by then.
    assert twice, held
    kept = on.sql("SELECT item, attempt, worker FROM callboard.items WHERE job_id = %s", job.id)
    assert {(attempt, worker) for item, attempt, worker in kept if item in twice and once(item)} <= {
        (2, other)
    }
    crashed = on.sql("SELECT item FROM callboard.attempts WHERE job_id = %s AND kind = 'crashed'", job.id)
    assert sorted(row[0] for row in crashed) == held
    assert on.status(job)["crashes"] == len(held)
    assert f"worker {worker} is dead" in on.said()
    # And it is as good as new.
    more = on.submit("work", ({"number": n, "seconds": 0.05} for n in range(100)))
    on.prove(more, total=100)
    (ran,) = on.ledger.conn.execute(
        "SELECT count(*) FROM runs WHERE job = %s AND pid = %s", (more.id, pid)
    ).fetchone() or (0,)
    assert ran > 0
    print(
        f"{len(held)} items in hand, {len(twice)} ended after all, {on.ledger.runs(job.id).total()} runs of {ITEMS}"
    )
