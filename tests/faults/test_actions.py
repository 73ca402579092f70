"""Cancel, pause, resume and retry on running jobs: measured in the actors' own table of runs, not in the counters."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import callboard
from tests.faults.rig.scenario import POLL, TIMEOUT, Scenario
from tests.support.timer import Timer
from tests.support.workers import wait_until

#: Seconds after an action within which every worker has heard of it.
HEARD_SECONDS = 1.0


def runs_begun(scenario: Scenario, job: callboard.Job, after: float) -> int:
    """Runs of a job that began after a moment."""
    row = scenario.run_log.conn.execute(
        "SELECT count(*) FROM runs WHERE job = %s AND began > to_timestamp(%s)", (job.id, after)
    ).fetchone()
    return int(row[0]) if row else 0


def going(scenario: Scenario, count: int, *, processes: int = 2, **item: Any) -> callboard.Job:
    """A job that is well under way on several processes."""
    job = scenario.submit("work", ({"number": n, "seconds": 0.02, **item} for n in range(count)))
    if not scenario.workers:
        scenario.start_worker(processes=processes)
    scenario.wait_for(job, lambda status: status["succeeded"] >= 200)
    return job


def still(scenario: Scenario, job: callboard.Job) -> None:
    """Wait until nothing of a job is running any more."""
    scenario.wait_for(job, lambda status: status["running"] == 0)


def unchanging(look: Callable[[], Any], seconds: float = 1.0) -> Any:
    """What it gives when it has been the same for a while."""
    last, since = look(), time.monotonic()
    while time.monotonic() - since < seconds:
        now = look()
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.1)
    return last


def test_a_cancelled_job_starts_nothing_more_and_ends_with_what_ran(scenario: Scenario) -> None:
    job = going(scenario, 5_000)
    with scenario.watch(job) as watcher:
        said, timer = time.time(), Timer()
        assert job.cancel("wrong file")["stopping"] == "cancelled"
        scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    heard = HEARD_SECONDS + timer.stalled
    ended = scenario.status(job)
    assert ended["reason"] == "wrong file"
    assert ended["stopping"] is None
    # What RabbitMQ holds is dropped on delivery.
    assert wait_until(lambda: scenario.ready_messages() == 0, TIMEOUT, pause=POLL)
    assert runs_begun(scenario, job, said + heard) == 0
    assert runs_begun(scenario, job, 0) == ended["succeeded"]
    assert ended["succeeded"] + ended["cancelled"] == 5_000
    assert ended["cancelled"] > 1_000
    assert watcher.wrong == []
    assert scenario.leftover_rows(job) == {"running": 0, "outbox": 0}
    assert job.cancel()["state"] == "cancelled"
    assert [action["action"] for action in job.actions()] == ["cancel"]


def test_a_long_item_may_look_and_leave(scenario: Scenario) -> None:
    scenario.start_worker()
    job = scenario.submit("leaves", [{"number": n} for n in range(3)])
    scenario.wait_for(job, lambda status: status["running"] == 3)
    job.cancel()
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    assert scenario.status(job)["skipped"] == 3


def test_what_was_parked_comes_back_in_order(scenario: Scenario) -> None:
    job = going(scenario, 1_500, processes=1)
    job.pause()
    still(scenario, job)
    assert wait_until(lambda: scenario.ready_messages() == 0, TIMEOUT, pause=POLL)
    unchanging(lambda: scenario.status(job)["pending"])
    said = time.time()
    job.resume()
    scenario.assert_completed(job, total=1_500)
    rows = scenario.run_log.conn.execute(
        "SELECT item FROM runs WHERE job = %s AND began > to_timestamp(%s) ORDER BY began", (job.id, said)
    ).fetchall()
    order = [row[0] for row in rows]
    # Eight threads start them side by side, and on a busy machine one of them may stand still for a moment.
    moved = sorted(abs(place - item) for place, item in enumerate(order, min(order)))
    assert moved[int(len(moved) * 0.95)] < 40, order
    assert len(order) == len(set(order))


def test_a_retry_that_falls_due_waits_for_the_pause_to_end(scenario: Scenario) -> None:
    scenario.start_worker()
    job = scenario.submit("work", [{"number": n, "fate": "retry", "seconds": 1.0} for n in range(8)])
    assert wait_until(lambda: scenario.run_log.run_counts(job.id).total() == 8, TIMEOUT)
    job.pause()
    scenario.wait_for(job, lambda status: status["retrying"] == 8)
    said = time.time()
    time.sleep(1)  # all are due within a tenth of that
    assert runs_begun(scenario, job, said) == 0
    job.resume()
    scenario.assert_completed(job, total=8, retries=8)


def test_retried_items_move_their_counts_back_and_twice_pressed_is_once_done(scenario: Scenario) -> None:
    scenario.start_worker(processes=2)
    job = scenario.submit(
        "work", ({"number": n, "fate": "once" if n % 4 == 0 else "succeed"} for n in range(400))
    )
    scenario.wait_for(job, lambda status: status["state"] == "completed")
    assert scenario.status(job)["failed"] == 100
    with scenario.watch(job, reopened=True) as watcher:
        assert job.retry() == 100
        assert job.retry() == 0
        runs = scenario.assert_completed(job, total=400, retries=100, watcher=watcher)
    assert all(count == (2 if item % 4 == 0 else 1) for item, count in runs.items())
    assert job.errors()[0]["count"] == 100
    assert job.errors()[0]["failed"] == 0
    assert len(job.actions()) == 1


def test_what_was_cancelled_is_done_after_all(scenario: Scenario) -> None:
    job = going(scenario, 1_500)
    job.cancel()
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    cancelled = scenario.status(job)["cancelled"]
    assert job.retry(["cancelled"]) == cancelled
    runs = scenario.assert_completed(job, total=1_500, timeout=600)
    assert runs.total() == 1_500


def test_chosen_items_of_a_cancelled_job_are_retried_and_the_rest_stays_cancelled(scenario: Scenario) -> None:
    job = scenario.submit(
        "work",
        ({"number": n, "fate": "once" if n < 40 else "succeed", "seconds": 0.02} for n in range(3_000)),
    )
    scenario.start_worker()
    scenario.wait_for(job, lambda status: status["succeeded"] >= 100)
    job.cancel()
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    before = scenario.status(job)
    assert before["failed"] == 40
    assert job.retry(error="KeyError") == 0
    assert scenario.status(job)["state"] == "cancelled"
    assert job.retry(error="Once") == 40
    scenario.wait_for(job, lambda status: status["state"] == "completed")
    after = scenario.status(job)
    assert after["succeeded"] == before["succeeded"] + 40
    assert after["cancelled"] == before["cancelled"]
    assert job.retry(items=[2_990, 2_991]) == 2
    scenario.wait_for(job, lambda status: status["state"] == "completed")
    assert scenario.status(job)["cancelled"] == before["cancelled"] - 2
    scenario.assert_counters_true()


# Killed in the middle -----------------------------------------------------------------------------------------------


def test_workers_killed_while_they_park_and_while_what_was_parked_goes_out_lose_nothing(
    scenario: Scenario,
) -> None:
    plan = ["parked", "parked", "sent", "sent"]
    job = scenario.submit("work", ({"number": n, "seconds": 0.02} for n in range(3_000)))
    scenario.start_worker(short_periods=5, kill_points=plan)
    scenario.wait_for(job, lambda status: status["succeeded"] >= 100)
    with scenario.watch(job) as watcher:
        while len(scenario.deaths()) < 2:  # the first one may have parked all that was queued
            job.resume()
            scenario.wait_for(job, lambda status: status["queued"] > 0)
            job.pause()
            scenario.wait_for(job, lambda status: status["queued"] == status["running"] == 0)
        job.resume()
        scenario.wait_for(job, lambda _: len(scenario.deaths()) == 4)
        runs = scenario.assert_completed(job, total=3_000, watcher=watcher, timeout=600)
    assert [death.point for death in scenario.deaths()] == plan
    # What was parked and what went out twice ran once; only what a worker had not yet on record may run again.
    assert sum(count - 1 for count in runs.values()) <= 16 * len(scenario.deaths())


def test_a_job_whose_workers_die_as_it_is_cancelled_is_cancelled(scenario: Scenario) -> None:
    """The items that they held do not end; these are cancelled, too, when the workers are found dead."""
    job = scenario.submit("work", ({"number": n, "seconds": 0.5} for n in range(120)))
    scenario.start_worker(short_periods=4)
    scenario.wait_for(job, lambda status: status["running"] > 0)
    job.cancel()
    scenario.workers[0].kill()
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    ended = scenario.status(job)
    assert ended["succeeded"] + ended["cancelled"] == 120
    assert scenario.leftover_rows(job) == {"running": 0, "outbox": 0}
    assert job.retry(["cancelled"]) == ended["cancelled"]
    scenario.assert_completed(job, total=120)


def told(scenario: Scenario, job: callboard.Job) -> dict[str, Any]:
    """What the actions on a job change of it."""
    status = scenario.status(job)
    words = ("state", "stopping", "sealed", "failed", "cancelled", "retries", "limits")
    return {**{word: status[word] for word in words}, "actions": [done["action"] for done in job.actions()]}


#: A `callboard` that dies when it is about to run a statement, in the middle of its transaction.
DIES = """
import os, signal, sys
from callboard.commands.main import main
from callboard.sql.writes import actions, jobs, requests, retry_action
real = actions.statement
def deadly(name):
    if name == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(name)
actions.statement = jobs.statement = requests.statement = retry_action.statement = deadly
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("at", "action"),
    [
        ("note_action", "pause"), ("note_action", "resume"), ("note_action", "limit"), ("note_action", "cancel"),
        ("cancel_rest", "retry"), ("retry_ended_items", "retry"), ("reopen_job", "retry"), ("note_action", "retry"),
    ],
)  # fmt: skip
def test_a_command_killed_in_the_middle_has_done_nothing_and_is_done_by_the_next(
    at: str, action: str, scenario: Scenario
) -> None:
    job = scenario.submit(
        "work", ({"number": n, "fate": "succeed" if n else "once", "seconds": 0.2} for n in range(400))
    )
    if action == "retry":
        scenario.start_worker()
        scenario.wait_for(job, lambda status: status["failed"] == 1)
        job.cancel()
        scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    if action == "resume":
        job.pause()
    before = told(scenario, job)
    command = [sys.executable, "-c", DIES, at, action, str(job.id)]
    if action == "limit":
        command += ["--rate", "10/s"]
    killed = subprocess.run(command, env={**os.environ, **scenario.environment}, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert told(scenario, job) == before
    say: dict[str, Callable[[], Any]] = {
        "pause": job.pause, "resume": job.resume, "limit": lambda: job.limit(rate="10/s"), "cancel": job.cancel,
        "retry": job.retry,
    }  # fmt: skip
    say[action]()
    assert [done["action"] for done in job.actions()] == [action, *before["actions"]]
