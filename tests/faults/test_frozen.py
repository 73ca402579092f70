"""A worker that stands still for longer than its heartbeat may, is taken for dead, and goes on."""

import os
import signal

import pytest

import callboard
from tests.faults.rig.points import HURRY
from tests.faults.rig.scene import ACTORS, Scene, fate
from tests.support.workers import Worker, wait_until

ITEMS = 60
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


def in_hand(on: Scene, job: callboard.Job, worker: int) -> dict[int, int]:
    """The items that a worker is known to have in hand, each with its attempt."""
    rows = on.sql(
        "SELECT item, attempt FROM callboard.running WHERE job_id = %s AND worker = %s", job.id, worker
    )
    return dict(rows)


def stand_still(on: Scene, worker: Worker) -> None:
    """Freeze it; what it had asked of the database is done."""
    os.killpg(worker.pid, signal.SIGSTOP)
    ((moment,),) = on.sql("SELECT clock_timestamp()")
    under_way = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
        " AND query_start < %s"
    )
    assert wait_until(lambda: on.sql(under_way, moment) == [(0,)], 60)


def run_elsewhere(on: Scene, job: callboard.Job, held: dict[int, int]) -> bool:
    """Whether the next attempt at each of these has begun."""
    begun = on.ledger.attempts(job.id)
    return all(begun[item, attempt + 1] for item, attempt in held.items())


@pytest.mark.parametrize("until", ["its items run elsewhere", "the job is done"])
def test_frozen_for_longer_than_its_heartbeat_may_then_continued(until: str, on: Scene) -> None:
    """What it held runs again elsewhere, and counts once; it comes back to life as the worker that it was."""
    env, modules = {HURRY: str(LIMIT)}, (ACTORS, "tests.faults.rig.points")
    frozen, at_work = (on.worker(env=env, modules=modules, threads=4) for _ in range(2))
    (worker, pid), (other, _) = (row_of(on, one) for one in (frozen, at_work))
    job = on.submit("work", ({"number": n, "fate": fate(n), "seconds": 1.0} for n in range(ITEMS)))
    with on.witness(job) as witness:
        on.until(job, lambda s: s["succeeded"] > 5 and len(in_hand(on, job, worker)) == 4)
        stand_still(on, frozen)
        held = in_hand(on, job, worker)
        assert wait_until(lambda: state_of(on, pid) == (worker, "dead"), 60)
        if until == "the job is done":
            on.until(job, lambda status: status["finished_at"] is not None)
        else:
            assert wait_until(lambda: run_elsewhere(on, job, held), 60)
        (now,) = on.ledger.conn.execute("SELECT clock_timestamp()").fetchone() or ()
        os.killpg(frozen.pid, signal.SIGCONT)
        assert wait_until(lambda: state_of(on, pid) == (worker, "alive"), 60)
        on.prove_mixed(job, ITEMS, witness=witness)
    assert wait_until(lambda: on.ledger.open(job.id) == 0, 60)
    late: dict[int, int] = dict(
        on.ledger.conn.execute(
            "SELECT item, attempt FROM runs WHERE job = %s AND pid = %s AND began < %s AND ended > %s",
            (job.id, pid, now, now),
        ).fetchall()
    )
    crashed = on.sql(
        "SELECT item, attempt FROM callboard.attempts WHERE job_id = %s AND kind = 'crashed'", job.id
    )
    assert dict(crashed) == held
    # It ended what it had in hand, and nothing of that counted: the item had another attempt by then.
    twice = late.items() & held.items()
    assert twice
    kept = {
        item: (attempt, by)
        for item, attempt, by in on.sql(
            "SELECT item, attempt, worker FROM callboard.items WHERE job_id = %s", job.id
        )
    }
    for item, attempt in twice:
        if once(item):
            assert kept[item] == (attempt + 1, other)
    assert on.status(job)["crashes"] == 0  # acquitted, since each ended by itself
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
