"""Workers that are killed, and workers that are asked to stop."""

import os
import random
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import callboard
from tests.faults.rig.scenario import ACTORS, BLAMELESS, TIMEOUT, Scenario, fate, gated, mixed
from tests.faults.test_actions import runs_begun
from tests.support.workers import Worker, wait_until

#: All of it with CALLBOARD_TEST_LONG.
KILLS, ITEMS = (50, 12_000) if os.environ.get("CALLBOARD_TEST_LONG") else (8, 250)
#: Items of a message: of one kind of job, and of the other. They are killed in turns.
CHUNKS = (20, 1)
INTERRUPTED = "SELECT DISTINCT pid FROM runs WHERE job = %s AND ended IS NULL"


def interrupted(scenario: Scenario, job: callboard.Job) -> set[int]:
    """The processes with runs of a job that have not ended."""
    return {pid for (pid,) in scenario.run_log.conn.execute(INTERRUPTED, (job.id,))}


def run_when_over(scenario: Scenario, job: callboard.Job) -> list[int]:
    """The items of a job of which a run began when their outcome was on record."""
    over = dict(scenario.sql("SELECT item, finished_at FROM callboard.items WHERE job_id = %s", job.id))
    begun = scenario.run_log.conn.execute("SELECT item, max(began) FROM runs WHERE job = %s GROUP BY item", (job.id,))
    return [item for item, last in begun if last > over[item]]


def stands(pid: int) -> bool:
    """Whether a process stands still (Linux): a thread that is in a system call first ends that."""
    states = (path.read_text("ascii", "replace") for path in Path(f"/proc/{pid}/task").glob("*/stat"))
    return all(state.rpartition(")")[2].split()[0] == "T" for state in states)


def kill_at_work(scenario: Scenario, job: callboard.Job, victim: Worker) -> bool:
    """Kill a worker if an item of the job is in flight in it: it stands still while that is looked up."""
    if not victim.process.running():
        return False
    pids = victim.children()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert wait_until(lambda: all(map(stands, pids)), TIMEOUT)
    if interrupted(scenario, job).isdisjoint(pids):
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
        scenario.start_worker(modules=(ACTORS, BLAMELESS))
    watched: list[tuple[callboard.Job, Any]] = []
    with ExitStack() as stack:

        def submitted(chunk: int) -> callboard.Job:
            job = scenario.submit("work", mixed(ITEMS, 0.08), chunk=chunk)
            watched.append((job, stack.enter_context(scenario.watch(job))))
            return job

        def over(job: callboard.Job) -> bool:
            return scenario.status(job)["finished_at"] is not None

        jobs, killed = {chunk: submitted(chunk) for chunk in CHUNKS}, 0
        while killed < KILLS:
            # However slow this test is, a job of each kind goes on.
            jobs |= {chunk: submitted(chunk) for chunk, job in jobs.items() if over(job)}
            victims, step = jobs[CHUNKS[killed % 2]], chance.randrange(5, 40)
            before = runs_begun(scenario, victims, 0)
            scenario.wait_for(
                victims, lambda s: s["finished_at"] is not None or runs_begun(scenario, victims, 0) > before + step
            )
            killed += kill_at_work(scenario, victims, chance.choice(scenario.workers))
        for job, watcher in watched:
            scenario.assert_mixed_completed(job, ITEMS, watcher=watcher, timeout=600)
    # The runs that were in flight have no end, and ran again.
    assert len(set().union(*(interrupted(scenario, job) for job, _ in watched))) == KILLS
    assert [run_when_over(scenario, job) for job, _ in watched] == [[]] * len(watched)
    again = [scenario.run_log.repeated(job.id) for job, _ in watched]
    print(f"{killed} kills, {scenario.starts} starts, {again} runs twice")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_nothing_runs_twice(number: signal.Signals, scenario: Scenario) -> None:
    """Twice, and each time all threads of both workers have items that end after that."""
    workers = [scenario.start_worker() for _ in range(2)]
    jobs: list[callboard.Job] = []
    for n in range(2):
        gate = scenario.folder / f"gate-{n}"
        jobs.append(scenario.submit("work", gated(mixed(160, 0.05), gate, 80)))
        scenario.wait_at_gate(jobs[-1], 80, threads=2 * 8)
        workers[0].boots += 1  # it is to be ready once more: a second signal before that ends it at once
        os.kill(workers[0].pid, number)
        gate.touch()
        if number == signal.SIGTERM:
            assert workers[0].process.child is not None
            assert workers[0].process.child.wait(TIMEOUT) == 0
        # It sees the signal within a second, and until then would take items of the next job.
        scenario.wait_for(jobs[-1], lambda _: workers[0].ready())
    tries = {"fail": 3, "retry": 2}
    for job in jobs:
        scenario.assert_mixed_completed(job, 160)
        assert scenario.run_log.repeated(job.id) == 0
        assert scenario.run_log.run_counts(job.id) == {n: tries.get(fate(n), 1) for n in range(160)}
