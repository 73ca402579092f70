"""Jobs are deleted: the process that deletes their rows is killed in the middle, and messages still lie in RabbitMQ."""

import signal
import subprocess
from collections import Counter

import pytest
from psycopg import sql

import callboard
from callboard.sql.pool import connect
from tests.faults.rig import dying_command
from tests.faults.rig.scenario import POLL, TIMEOUT, Scenario, mixed
from tests.support.programs import run
from tests.support.workers import wait_until

ITEMS = 1_000


def purge(scenario: Scenario, *arguments: object, dies: str = "", times: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `callboard purge` in a process of its own, one that `dies` maybe."""
    command = (dies, str(times), "purge", *map(str, arguments))
    return run(scenario.folder, *command, env=scenario.environment, program=dying_command.PROGRAM)


def left(scenario: Scenario, job: callboard.Job) -> dict[str, int]:
    """The tables that have rows of a job, with their number."""
    count = sql.SQL("SELECT count(*) FROM callboard.{} WHERE {} = %s")
    found = Counter[str]()
    with connect(scenario.database_url) as conn:
        tables = conn.execute(
            "SELECT table_name FROM information_schema.columns"
            " WHERE table_schema = 'callboard' AND column_name = 'job_id'"
        ).fetchall()
        for table, column in [*((row[0], "job_id") for row in tables), ("jobs", "id")]:
            query = count.format(sql.Identifier(table), sql.Identifier(column))
            found[table] = next(conn.execute(query, (job.id,)))[0]
    return dict(+found)


def exists(scenario: Scenario, job: callboard.Job) -> bool:
    """Whether a job has its own row, which goes with the last of its other rows."""
    return bool(scenario.sql("SELECT 1 FROM callboard.jobs WHERE id = %s", job.id))


def cancelled(scenario: Scenario) -> callboard.Job:
    """A job that was cancelled before any item started."""
    job = scenario.submit("work", mixed(ITEMS))
    job.cancel()
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    return job


#: The statement before which a purge dies, at which time, and how many items are left then.
DEATHS = [
    ("delete_items", 1, 1000), ("delete_item_rows", 4, 700), ("save_deletion_progress", 10, 100),
    ("lock_deleted_job", 1, 0), ("delete_job_rows", 1, 0),
]  # fmt: skip


def test_a_purge_killed_in_the_middle_is_gone_on_with(scenario: Scenario) -> None:
    """The next purge by id, a purge of expired jobs, or the sweep of a worker deletes the rest."""

    def killed(dies: str, times: int, items: int) -> callboard.Job:
        job = cancelled(scenario)
        assert purge(scenario, job.id, dies=dies, times=times).returncode == -signal.SIGKILL, dies
        assert left(scenario, job).get("items", 0) == items, dies
        assert left(scenario, job)["jobs"] == 1, dies
        with pytest.raises(callboard.NoSuchJob):
            job.status()
        return job

    jobs, other = [killed(*death) for death in DEATHS], cancelled(scenario)
    scenario.assert_counters_true()
    for part, named in (([1, 3], True), ([0, 2, 4], False)):
        done = purge(scenario, *[jobs[n].id for n in part if named])
        items = sum(DEATHS[n][2] for n in part)
        assert (done.returncode, done.stdout) == (0, f"deleted {len(part)} jobs with {items:,} items\n"), done.stderr
        assert not any(left(scenario, jobs[n]) for n in part)
    jobs = [killed(*death) for death in DEATHS]
    scenario.start_worker()
    assert wait_until(lambda: not any(exists(scenario, job) for job in jobs), TIMEOUT, pause=POLL)
    assert not any(left(scenario, job) for job in jobs)
    assert scenario.status(other)["cancelled"] == ITEMS


def test_what_rabbitmq_holds_of_a_deleted_job_never_runs(scenario: Scenario) -> None:
    """No message is redelivered or suspect: they do not run only because workers read that the job is deleted."""
    worker = scenario.start_worker()
    assert wait_until(scenario.has_consumer, TIMEOUT, pause=POLL)
    worker.stop()  # its queue is there
    job = scenario.submit("work", mixed(ITEMS))
    assert wait_until(lambda: scenario.ready_messages() > 50, TIMEOUT, pause=POLL)
    job.cancel()
    assert wait_until(lambda: scenario.status(job)["state"] == "cancelled", TIMEOUT)
    job.delete()
    assert purge(scenario).returncode == 0
    assert left(scenario, job) == {}
    held = scenario.ready_messages()
    assert held > 50
    scenario.workers[0].start()
    assert wait_until(lambda: scenario.ready_messages() == 0, TIMEOUT, pause=POLL)
    later = scenario.submit("work", mixed(40))
    scenario.assert_mixed_completed(later, 40)
    assert scenario.run_log.run_counts(job.id).total() == 0
    assert left(scenario, job) == {}


def test_a_job_is_deleted_while_others_run_and_its_time_is_over(scenario: Scenario) -> None:
    scenario.start_worker(processes=2)
    first = scenario.submit("work", mixed(100), keep="1h")
    scenario.assert_mixed_completed(first, 100)
    busy = scenario.submit("work", mixed(600, seconds=0.02))
    with scenario.watch(busy) as watcher:
        scenario.sql("UPDATE callboard.jobs SET finished_at = now() - interval '2 hours' WHERE id = %s", first.id)
        assert wait_until(lambda: not exists(scenario, first), TIMEOUT, pause=POLL)
        assert left(scenario, first) == {}
        scenario.assert_mixed_completed(busy, 600, watcher=watcher)
    said = f"job {first.id} is deleted: its time is over"
    assert wait_until(lambda: said in scenario.log(), TIMEOUT, pause=POLL)  # the worker's master passes it on
