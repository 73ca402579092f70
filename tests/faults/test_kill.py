"""Workers that are killed, and workers that are asked to stop."""

import os
import random
import signal

import pytest

import callboard
from tests.faults.rig.scenario import TIMEOUT, Scenario, fate, gated, mixed
from tests.faults.test_actions import runs_begun
from tests.support.workers import Worker

#: All of it with CALLBOARD_TEST_LONG.
KILLS, ITEMS = (50, 12_000) if os.environ.get("CALLBOARD_TEST_LONG") else (8, 900)


INTERRUPTED = "SELECT DISTINCT pid FROM runs WHERE job = %s AND ended IS NULL"


def kill_at_work(scenario: Scenario, job: callboard.Job, victim: Worker) -> bool:
    """Kill a worker if an item of the job is in flight in it: it stands still while that is looked up."""
    if not victim.process.running():
        return False
    pids = victim.children()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    if {pid for (pid,) in scenario.run_log.conn.execute(INTERRUPTED, (job.id,))}.isdisjoint(pids):
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        return False
    victim.kill()
    return True


def test_killed_many_times_in_one_job(scenario: Scenario) -> None:
    """SIGKILL to a whole worker at random moments in which it works; a supervisor starts it again."""
    chance = random.Random(20261124)
    for _ in range(2):
        scenario.start_worker()
    gate = scenario.folder / "gate"
    job = scenario.submit("work", gated(mixed(ITEMS, 0.1), gate, ITEMS - 100))
    killed = 0
    with scenario.watch(job) as watcher:
        while killed < KILLS:
            before = runs_begun(scenario, job, 0)
            step = chance.randrange(5, 60)
            scenario.wait_for(
                job, lambda s: s["succeeded"] > ITEMS // 2 or runs_begun(scenario, job, 0) > before + step
            )
            killed += kill_at_work(scenario, job, chance.choice(scenario.workers))
        gate.touch()
        runs = scenario.assert_mixed_completed(job, ITEMS, watcher=watcher, timeout=600)
    # The runs that were in flight have no end, and ran again.
    assert len(scenario.run_log.conn.execute(INTERRUPTED, (job.id,)).fetchall()) == KILLS
    twice = scenario.run_log.repeated(job.id)
    print(f"{killed} kills, {scenario.starts} starts, {runs.total()} runs, {twice} runs twice")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_nothing_runs_twice(number: signal.Signals, scenario: Scenario) -> None:
    workers = [scenario.start_worker() for _ in range(2)]
    job = scenario.submit("work", mixed(1000, 0.05))
    for part in (200, 450, 700):
        scenario.wait_for(job, lambda s: s["succeeded"] > part and workers[0].ready())
        workers[0].boots += 1  # it is to be ready once more: a second signal before that ends it at once
        os.kill(workers[0].pid, number)
        if number == signal.SIGTERM:
            assert workers[0].process.child is not None
            assert workers[0].process.child.wait(TIMEOUT) == 0
    scenario.assert_mixed_completed(job, 1000)
    assert scenario.run_log.repeated(job.id) == 0
    tries = {"fail": 3, "retry": 2}
    assert scenario.run_log.run_counts(job.id) == {n: tries.get(fate(n), 1) for n in range(1000)}
