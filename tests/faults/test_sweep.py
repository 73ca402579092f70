"""Sweeps that are elected, killed and frozen; and what a worker held that is gone or cut off."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import callboard
from callboard.commands.services import wait_until
from callboard.middleware.sweep import lost_messages, sweep
from callboard.middleware.sweep.sweep import Sweep
from callboard.sql.pool import make_pool
from callboard.sql.writes import sweep as leases
from tests.faults.rig.points import HURRY
from tests.faults.rig.scene import ACTORS, TIMEOUT, Scene, seconds_since

POINTS = "tests.faults.rig.points"
LEADER = "SELECT holder, until FROM callboard.leases WHERE name = 'sweep' AND until > now()"
#: In how many seconds an item that a worker held runs again: when RabbitMQ knows that the worker is gone, and else.
KILLED, CUT_OFF = 15.0, 60.0


def leader(on: Scene) -> str:
    """Who sweeps; nobody: an empty text."""
    rows = on.sql(LEADER)
    return str(rows[0][0]) if rows else ""


def pid_of(holder: str) -> int:
    return int(holder.split(":")[1])


def frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


def runs(on: Scene, job: callboard.Job) -> list[tuple[int, int]]:
    """(item, pid) of each run, in order."""
    return list(on.ledger.conn.execute("SELECT item, pid FROM runs WHERE job = %s ORDER BY id", (job.id,)))


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Processes that the test freezes; they go on at its end."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


def test_the_one_that_sweeps_is_killed_and_frozen_and_another_takes_over(
    on: Scene, stopped: list[int]
) -> None:
    """It comes to after its lease was taken: it sweeps no more, and what it had found is sent by the other only."""
    for _ in range(3):
        on.worker(env={HURRY: "5"}, modules=(ACTORS, POINTS), threads=2)
    workers = list(on.workers)
    assert wait_until(lambda: leader(on), TIMEOUT)
    job = on.submit("work", ({"number": n, "seconds": 0.05} for n in range(1_500)))
    with on.witness(job) as witness:
        on.until(job, lambda status: status["succeeded"] > 100)
        first = leader(on)
        os.kill(pid_of(first), signal.SIGKILL)
        assert wait_until(lambda: leader(on) not in ("", first), TIMEOUT)
        second = leader(on)
        gone = on.lose()
        on.until(job, lambda status: status["succeeded"] > 200)
        os.kill(pid_of(second), signal.SIGSTOP)
        stopped.append(pid_of(second))
        assert wait_until(lambda: frozen(pid_of(second)), TIMEOUT)
        assert wait_until(lambda: leader(on) not in ("", second), TIMEOUT)
        third = leader(on)
        on.until(job, lambda _: "had lost their messages" in on.said())
        os.kill(pid_of(second), signal.SIGCONT)
        on.prove(job, total=1_500, witness=witness)
        assert leader(on) == third
    assert gone > 0
    assert len({first, second, third}) == 3
    assert len(workers) == 3
    print(f"{gone} lost, {on.ledger.twice(job.id)} runs twice")


def test_two_sweeps_at_once_send_nothing_twice(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not elected but told to: each does everything, at the same time. Only who has the lease sends again."""
    monkeypatch.setenv("CALLBOARD_QUEUE_DEPTH", "1000")  # all of them, though nobody works
    monkeypatch.setattr(lost_messages, "REPORT_AGE_SECONDS", 0.0)
    monkeypatch.setattr(sweep, "SEARCH_SECONDS", 0.0)
    job = on.submit("work", ({"number": n} for n in range(300)))
    on.until(job, lambda status: status["queued"] == 300)
    with on.channel() as channel:
        assert channel.queue_purge("default").method.message_count == 300
    runtime = on.broker.runtime  # type: ignore[attr-defined]
    with make_pool(on.direct_url, size=2) as pool:
        sweeps = [Sweep(runtime.process, runtime.make_transport) for _ in range(2)]
        with pool.connection() as conn:
            assert [leases.take_lease(conn, "sweep", one._holder, 60) for one in sweeps] == [True, False]

        def rounds(one: Sweep) -> None:
            with pool.connection() as conn:
                for _ in range(6):
                    one.round(conn)
                    time.sleep(0.05)

        threads = [threading.Thread(target=rounds, args=(one,)) for one in sweeps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert on.sql("SELECT count(*) FROM callboard.outbox WHERE job_id = %s", job.id) == [(300,)]
        with pool.connection() as conn:
            leases.drop_lease(conn, "sweep", sweeps[0]._holder)
    on.worker()
    found = on.prove(job, total=300, retries=0)
    assert set(found.values()) == {1}


@pytest.mark.parametrize(
    ("number", "promised"), [(signal.SIGKILL, KILLED), (signal.SIGSTOP, CUT_OFF)], ids=["killed", "cut off"]
)
def test_what_a_worker_held_runs_again_in_time(
    on: Scene, stopped: list[int], number: signal.Signals, promised: float
) -> None:
    """By the product's own periods: many in its hands, one not begun, none of them waits for the others though each is
    charged with the death. It was the one that sweeps, too.
    """
    gate, modules = on.folder / "gate", (ACTORS, "tests.faults.rig.gates")
    victim = on.worker(threads=6, modules=modules)
    job = on.submit("gated", ({"number": n, "gate": str(gate)} for n in range(7)))
    on.until(job, lambda status: status["running"] == 6)
    pid = runs(on, job)[0][1]
    survivor = on.worker(threads=8, modules=modules)
    assert pid_of(leader(on)) == pid
    held = "SELECT held FROM callboard.workers WHERE pid = %s"
    assert wait_until(lambda: on.sql(held, pid) == [(7,)], TIMEOUT)
    if number == signal.SIGKILL:
        victim.kill()
        on.workers.remove(victim)  # nobody starts it again
    else:
        stopped.append(pid)
        os.kill(pid, number)
        assert wait_until(lambda: frozen(pid), TIMEOUT)
    moment = time.monotonic()

    def again() -> bool:
        return set(range(7)) == {item for item, where in runs(on, job) if where != pid}

    on.until(job, lambda _: again())
    took = seconds_since(moment)
    assert took < promised
    assert survivor.process.running()
    if number == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    gate.touch()
    on.prove(job, total=7)
    assert on.status(job)["crashes"] == 0
    print(f"{number.name}: all run again after {took:.1f} s")
