"""Workers that are killed, and workers that are asked to stop."""

import os
import random
import signal
from collections.abc import Sequence

import pytest

import callboard
from tests.faults.rig.scenario import TIMEOUT, Scenario, fate, gated, mixed
from tests.faults.test_actions import runs_begun
from tests.support.workers import Worker

#: All of it with CALLBOARD_TEST_LONG.
KILLS, ITEMS = (50, 12_000) if os.environ.get("CALLBOARD_TEST_LONG") else (8, 500)
#: Items of a message.
CHUNK = 20
INTERRUPTED = "SELECT DISTINCT pid FROM runs WHERE job = ANY (%s) AND ended IS NULL"


def interrupted(scenario: Scenario, jobs: Sequence[callboard.Job]) -> set[int]:
    """The processes with runs of these jobs that have not ended."""
    return {pid for (pid,) in scenario.run_log.conn.execute(INTERRUPTED, ([job.id for job in jobs],))}


def kill_at_work(scenario: Scenario, jobs: Sequence[callboard.Job], victim: Worker) -> bool:
    """Kill a worker if an item of the jobs is in flight in it: it stands still while that is looked up."""
    if not victim.process.running():
        return False
    pids = victim.children()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    if interrupted(scenario, jobs).isdisjoint(pids):
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        return False
    victim.kill()
    return True


def test_killed_many_times_in_the_middle_of_jobs(scenario: Scenario) -> None:
    """SIGKILL to a whole worker at random moments in which it works; a supervisor starts it again. The items of one job
    come each in its message, those of the other together: only those without an outcome run again.
    """
    chance = random.Random(20261124)
    for _ in range(2):
        scenario.start_worker()
    gate = scenario.folder / "gate"
    items = gated(mixed(ITEMS, 0.1), gate, ITEMS - 100)
    jobs = [scenario.submit("work", mixed(ITEMS, 0.08), chunk=CHUNK), scenario.submit("work", items, chunk=1)]
    killed = 0
    with scenario.watch(jobs[0]) as one, scenario.watch(jobs[1]) as other:
        while killed < KILLS:
            before = runs_begun(scenario, jobs[1], 0)
            step = chance.randrange(5, 40)
            scenario.wait_for(
                jobs[1], lambda s: s["succeeded"] > ITEMS // 2 or runs_begun(scenario, jobs[1], 0) > before + step
            )
            killed += kill_at_work(scenario, jobs, chance.choice(scenario.workers))
        gate.touch()
        for job, watcher in zip(jobs, (one, other), strict=True):
            scenario.assert_mixed_completed(job, ITEMS, watcher=watcher, timeout=600)
    # The runs that were in flight have no end, and ran again.
    assert len(interrupted(scenario, jobs)) == KILLS
    again = [scenario.run_log.repeated(job.id) for job in jobs]
    assert again[0] < KILLS * 8 * CHUNK  # far less than whole messages for each thread
    print(f"{killed} kills, {scenario.starts} starts, {again} runs twice")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_nothing_runs_twice(number: signal.Signals, scenario: Scenario) -> None:
    """Three times, and each time all threads of both workers have items that end after that."""
    workers = [scenario.start_worker() for _ in range(2)]
    jobs: list[callboard.Job] = []
    for n in range(3):
        gate = scenario.folder / f"gate-{n}"
        jobs.append(scenario.submit("work", gated(mixed(240, 0.05), gate, 80)))
        scenario.wait_at_gate(jobs[-1], 80, threads=2 * 8)
        scenario.wait_for(jobs[-1], lambda _: workers[0].ready())
        workers[0].boots += 1  # it is to be ready once more: a second signal before that ends it at once
        os.kill(workers[0].pid, number)
        gate.touch()
        if number == signal.SIGTERM:
            assert workers[0].process.child is not None
            assert workers[0].process.child.wait(TIMEOUT) == 0
    tries = {"fail": 3, "retry": 2}
    for job in jobs:
        scenario.assert_mixed_completed(job, 240)
        assert scenario.run_log.repeated(job.id) == 0
        assert scenario.run_log.run_counts(job.id) == {n: tries.get(fate(n), 1) for n in range(240)}
