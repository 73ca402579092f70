"""Sweeps are elected, killed and frozen; the items of a worker that is gone or cut off run again."""

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
from tests.faults.rig.scenario import TIMEOUT, Scenario, gated
from tests.support.timer import Timer

LEADER = "SELECT holder, until FROM callboard.leases WHERE name = 'sweep' AND until > now()"
#: In how many seconds an item that a worker held runs again: when RabbitMQ knows that the worker is gone (15, if no
#: process stands still meanwhile), and else.
KILLED, CUT_OFF = 30.0, 90.0


def leader(scenario: Scenario) -> str:
    """The holder of the lease of the sweep; empty: none."""
    rows = scenario.sql(LEADER)
    return str(rows[0][0]) if rows else ""


def elected(scenario: Scenario, *before: str) -> str:
    """The holder of the lease, when there is one that is none of these."""
    found = ""

    def holds() -> bool:
        nonlocal found
        found = leader(scenario)
        return found not in ("", *before)

    assert wait_until(holds, TIMEOUT)
    return found


def pid_of(holder: str) -> int:
    return int(holder.split(":")[1])


def frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


def runs(scenario: Scenario, job: callboard.Job) -> list[tuple[int, int]]:
    """(item, pid) of each run, in order."""
    return list(scenario.run_log.conn.execute("SELECT item, pid FROM runs WHERE job = %s ORDER BY id", (job.id,)))


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
    scenario: Scenario, stopped: list[int]
) -> None:
    """It goes on after its lease was taken: it sweeps no more, and only the other sends what it had found."""
    for _ in range(3):
        scenario.start_worker(short_periods=5, threads=2)
    workers = list(scenario.workers)
    assert wait_until(lambda: leader(scenario), TIMEOUT)
    gate = scenario.folder / "gate"
    scenario.submit("work", [{"number": 0}], delay="1d")  # else nobody need sweep when the other job is done
    job = scenario.submit("work", gated(({"number": n, "seconds": 0.02} for n in range(600)), gate, 400))
    with scenario.watch(job) as watcher:
        scenario.wait_for(job, lambda status: status["succeeded"] > 100)
        first = elected(scenario)
        os.kill(pid_of(first), signal.SIGKILL)
        second = elected(scenario, first)
        gone = scenario.lose_messages()
        gate.touch()
        scenario.wait_for(job, lambda status: status["succeeded"] > 200)
        os.kill(pid_of(second), signal.SIGSTOP)
        stopped.append(pid_of(second))
        assert wait_until(lambda: frozen(pid_of(second)), TIMEOUT)
        third = elected(scenario, first, second)
        scenario.wait_for(job, lambda _: "had lost their messages" in scenario.log())
        ((now,),) = scenario.sql("SELECT clock_timestamp()")
        os.kill(pid_of(second), signal.SIGCONT)
        beaten = "SELECT id FROM callboard.workers WHERE pid = %s AND beat_at > %s"
        assert wait_until(lambda: scenario.sql(beaten, pid_of(second), now), TIMEOUT)
        scenario.assert_completed(job, total=600, watcher=watcher)
        assert elected(scenario) == third
    assert gone > 0
    assert len({first, second, third}) == 3
    assert len(workers) == 3
    print(f"{gone} lost, {scenario.run_log.repeated(job.id)} runs twice")


def test_two_sweeps_at_once_send_nothing_twice(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sweep at the same time without an election. Only the holder of the lease sends messages again."""
    monkeypatch.setenv("CALLBOARD_QUEUE_DEPTH", "1000")  # all of them, though nobody works
    monkeypatch.setattr(lost_messages, "REPORT_AGE_SECONDS", 0.0)
    monkeypatch.setattr(sweep, "SEARCH_SECONDS", 0.0)
    job = scenario.submit("work", ({"number": n} for n in range(300)))
    scenario.wait_for(job, lambda status: status["queued"] == 300)
    with scenario.channel() as channel:
        assert channel.queue_purge("default").method.message_count == 300
    runtime = scenario.broker.runtime  # type: ignore[attr-defined]
    with make_pool(scenario.database_url, size=2) as pool:
        sweeps = [Sweep(runtime.process, runtime.make_transport) for _ in range(2)]
        with pool.connection() as conn:
            taken = [leases.acquire_lease(conn, one._holder, 60, 60) for one in sweeps]
            assert [lease is not None for lease in taken] == [True, False]

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
        assert scenario.sql("SELECT count(*) FROM callboard.outbox WHERE job_id = %s", job.id) == [(300,)]
        with pool.connection() as conn:
            leases.release_lease(conn, sweeps[0]._holder)
    scenario.start_worker()
    found = scenario.assert_completed(job, total=300, retries=0)
    assert set(found.values()) == {1}


@pytest.mark.parametrize(
    ("number", "promised"), [(signal.SIGKILL, KILLED), (signal.SIGSTOP, CUT_OFF)], ids=["killed", "cut off"]
)
def test_what_a_worker_held_runs_again_in_time(
    scenario: Scenario, stopped: list[int], number: signal.Signals, promised: float
) -> None:
    """By the product's own periods: many in its hands, none of them waits for the others though each is charged with
    the death. It was the one that sweeps, too. The one that it had not begun is the other worker's by then.
    """
    gate = scenario.folder / "gate"
    victim = scenario.start_worker(threads=6)
    job = scenario.submit("work", ({"number": n, "gate": str(gate)} for n in range(7)))
    scenario.wait_for(job, lambda status: status["running"] == 6)
    pid = runs(scenario, job)[0][1]
    survivor = scenario.start_worker(threads=8)
    held = "SELECT cardinality(held_items) FROM callboard.workers WHERE pid = %s"

    def sweeps_with_six() -> bool:
        if pid_of(elected(scenario)) != pid:  # the lease lapsed while it stood still, and is anybody's now
            scenario.sql("DELETE FROM callboard.leases WHERE name = 'sweep'")
            return False
        return scenario.sql(held, pid) == [(6,)] and scenario.status(job)["running"] == 7

    assert wait_until(sweeps_with_six, TIMEOUT)
    if number == signal.SIGKILL:
        victim.kill()
        scenario.workers.remove(victim)  # nobody starts it again
    else:
        stopped.append(pid)
        os.kill(pid, number)
        assert wait_until(lambda: frozen(pid), TIMEOUT)
    timer = Timer()

    def again() -> bool:
        return set(range(7)) == {item for item, where in runs(scenario, job) if where != pid}

    scenario.wait_for(job, lambda _: again())
    took = timer.seconds
    assert took < promised
    assert survivor.process.running()
    if number == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    gate.touch()
    scenario.assert_completed(job, total=7)
    assert scenario.status(job)["crashes"] == 0
    print(f"{number.name}: all run again after {took:.1f} s")
