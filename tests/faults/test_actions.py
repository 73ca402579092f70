"""Cancel, pause, resume and retry on running jobs: measured in the actors' own table of runs, not in the counters."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import callboard
from tests.faults.rig import dying_command
from tests.faults.rig.scenario import POLL, TIMEOUT, Scenario, gated
from tests.faults.test_kill_points import runs_since
from tests.support.programs import run
from tests.support.vhosts import Broker
from tests.support.workers import wait_until


def runs_begun(scenario: Scenario, job: callboard.Job, after: float) -> int:
    """Runs of a job that began after a moment."""
    row = scenario.run_log.conn.execute(
        "SELECT count(*) FROM runs WHERE job = %s AND began > to_timestamp(%s)", (job.id, after)
    ).fetchone()
    return int(row[0]) if row else 0


def going(scenario: Scenario, count: int, *, processes: int = 2, start: int = 300) -> tuple[callboard.Job, Path]:
    """A job that is well under way on several processes; its items from number `start` on wait for the file."""
    gate = scenario.folder / "gate"
    items = ({"number": n, "seconds": 0.02} for n in range(count))
    job = scenario.submit("work", gated(items, gate, start))
    scenario.start_worker(processes=processes)
    scenario.wait_at_work(job, 200, start, threads=8 * processes)
    return job, gate


def test_a_cancelled_job_starts_nothing_more_and_ends_with_what_ran(scenario: Scenario) -> None:
    """It stops with most of its items in the queue and in the hands of workers, whose threads have begun some."""
    job, _ = going(scenario, 800)
    with scenario.watch(job) as watcher:
        said = job.cancel("wrong file")
        assert "cancelled" in (said["stopping"], said["state"])  # what had begun may have ended by now
        scenario.all_heard(job)
        heard = time.time()
        scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    ended = scenario.status(job)
    assert ended["reason"] == "wrong file"
    assert ended["stopping"] is None
    # What RabbitMQ holds is dropped on delivery.
    assert wait_until(lambda: scenario.ready_messages() == 0, TIMEOUT, pause=POLL)
    assert runs_begun(scenario, job, heard) == 0
    assert runs_begun(scenario, job, 0) == ended["succeeded"]
    assert ended["succeeded"] + ended["cancelled"] == 800
    # Those that had begun end when they hear of it, and each thread may take one more before its process has heard.
    assert ended["succeeded"] <= 300 + 2 * 16
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
    job, gate = going(scenario, 800, processes=1)
    job.pause()
    scenario.all_heard(job)
    gate.touch()
    scenario.wait_for(job, lambda status: status["queued"] == status["running"] == 0)
    assert scenario.ready_messages() == 0
    said = time.time()
    job.resume()
    scenario.assert_completed(job, total=800)
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
    gate = scenario.folder / "gate"
    job = scenario.submit("work", gated(({"number": n, "fate": "retry"} for n in range(8)), gate, 0))
    scenario.wait_for(job, lambda status: status["running"] == 8)
    job.pause()
    scenario.all_heard(job)
    gate.touch()
    overdue = "SELECT count(*) FROM callboard.outbox WHERE job_id = %s AND due_at < now() - interval '1 s'"
    assert wait_until(lambda: scenario.sql(overdue, job.id) == [(8,)], TIMEOUT, pause=POLL)
    assert runs_begun(scenario, job, 0) == 8
    job.resume()
    scenario.assert_completed(job, total=8, retries=8)


def test_retried_items_move_their_counts_back_and_twice_pressed_is_once_done(scenario: Scenario) -> None:
    scenario.start_worker(processes=2)
    job = scenario.submit("work", ({"number": n, "fate": "once" if n % 4 == 0 else "succeed"} for n in range(400)))
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


def test_what_was_cancelled_is_done_after_all(broker: Broker, scenario: Scenario) -> None:
    job, gate = going(scenario, 800)
    job.cancel()
    scenario.all_heard(job)
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    # No message of before is left, which would run beside the new one of its item.
    url = scenario.environment["AMQP_URL"]
    assert wait_until(lambda: broker.queues(url)["default"] == 0, TIMEOUT)
    cancelled = scenario.status(job)["cancelled"]
    assert cancelled > 400
    gate.touch()
    assert job.retry(["cancelled"]) == cancelled
    runs = scenario.assert_completed(job, total=800)
    assert runs.total() == 800


def test_chosen_items_of_a_cancelled_job_are_retried_and_the_rest_stays_cancelled(scenario: Scenario) -> None:
    gate = scenario.folder / "gate"
    items = ({"number": n, "fate": "once" if n < 40 else "succeed"} for n in range(600))
    job = scenario.submit("work", gated(items, gate, 150))
    scenario.start_worker()
    scenario.wait_for(job, lambda status: status["failed"] == 40 and status["succeeded"] > 0)
    job.cancel()
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    gate.touch()
    before = scenario.status(job)
    assert before["failed"] == 40
    assert job.retry(error="KeyError") == 0
    assert scenario.status(job)["state"] == "cancelled"
    assert job.retry(error="Once") == 40
    scenario.wait_for(job, lambda status: status["state"] == "completed")
    after = scenario.status(job)
    assert after["succeeded"] == before["succeeded"] + 40
    assert after["cancelled"] == before["cancelled"]
    assert job.retry(items=[590, 591]) == 2
    scenario.wait_for(job, lambda status: status["state"] == "completed")
    assert scenario.status(job)["cancelled"] == before["cancelled"] - 2
    scenario.assert_counters_true()


# Killed in the middle -----------------------------------------------------------------------------------------------


def test_workers_killed_while_they_park_and_while_what_was_parked_goes_out_lose_nothing(scenario: Scenario) -> None:
    plan = ["parked", "parked", "sent", "sent"]
    scenario.start_worker(short_periods=5, kill_points=plan)
    with ExitStack() as stack:

        def watched_job() -> tuple[callboard.Job, Any]:
            job = scenario.submit("work", ({"number": n, "seconds": 0.08} for n in range(600)))
            return job, stack.enter_context(scenario.watch(job))

        jobs = [watched_job()]
        # The first one may have parked all that was queued, or the job is done before it is paused: then once more.
        while len(scenario.deaths()) < 2:
            if scenario.status(jobs[-1][0])["finished_at"] is not None:
                jobs.append(watched_job())
            assert len(jobs) < 20
            job, _ = jobs[-1]
            with suppress(callboard.NotPossible):
                job.resume()
                scenario.wait_for(job, lambda status: status["queued"] > 0 or status["finished_at"] is not None)
                job.pause()
            scenario.wait_for(job, lambda status: status["queued"] == status["running"] == 0)
        job.resume()
        scenario.wait_for(job, lambda _: len(scenario.deaths()) == 4)
        runs = [scenario.assert_completed(one, total=600, watcher=watcher) for one, watcher in jobs]
    assert [death.point for death in scenario.deaths()] == plan
    first, second, *_ = scenario.deaths()
    assert second.keys
    # What the first one kept had not begun, and ran later. Copies may come to the second of what has ended.
    since = runs_since(scenario, first)
    assert min(since) >= 1
    counts = {job.id: count for (job, _), count in zip(jobs, runs, strict=True)}
    assert since == [counts[job][item] for job, item in first.keys]
    # What was parked and what went out twice ran once; only what a worker had not yet on record may run again.
    again = sum(count - 1 for counts in runs for count in counts.values())
    assert again <= sum(death.held + 16 for death in scenario.deaths())


def test_a_job_whose_workers_die_as_it_is_cancelled_is_cancelled(scenario: Scenario) -> None:
    """The items that they held do not end; these are cancelled, too, when the workers are found dead."""
    gate = scenario.folder / "gate"
    job = scenario.submit("work", gated(({"number": n} for n in range(120)), gate, 10))
    scenario.start_worker(short_periods=4)
    scenario.wait_for(job, lambda status: status["running"] == 8)
    scenario.workers[0].process.send(signal.SIGSTOP)
    for pid in scenario.workers[0].children():
        os.kill(pid, signal.SIGSTOP)  # else its items end as soon as it hears of the cancel
    job.cancel()
    scenario.workers[0].kill()
    gate.touch()
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


def killed_at(scenario: Scenario, job: callboard.Job, statement: str, *arguments: str) -> None:
    """A command on a job dies before this statement: nothing is done."""
    before = told(scenario, job)
    command = (statement, "1", arguments[0], str(job.id), *arguments[1:])
    killed = run(scenario.folder, *command, env=scenario.environment, program=dying_command.PROGRAM)
    assert killed.returncode == -signal.SIGKILL, (statement, arguments)
    assert told(scenario, job) == before, (statement, arguments)


def test_a_command_killed_in_the_middle_has_done_nothing_and_is_done_by_the_next(scenario: Scenario) -> None:
    gate = scenario.folder / "gate"
    items = ({"number": n, "fate": "succeed" if n else "once"} for n in range(40))
    job = scenario.submit("work", gated(items, gate, 1))
    done: list[str] = []

    def do(action: str, said: Callable[[], Any]) -> None:
        said()
        done.insert(0, action)
        assert [one["action"] for one in job.actions()] == done

    killed_at(scenario, job, "note_action", "pause")
    do("pause", job.pause)
    killed_at(scenario, job, "note_action", "resume")
    do("resume", job.resume)
    killed_at(scenario, job, "note_action", "limit", "--rate", "10/s")
    do("limit", lambda: job.limit(rate="10/s"))
    scenario.start_worker()
    scenario.wait_for(job, lambda status: status["failed"] == 1)
    killed_at(scenario, job, "note_action", "cancel")
    do("cancel", job.cancel)
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    for statement in ("cancel_rest", "retry_ended_items", "reopen_job", "note_action"):
        killed_at(scenario, job, statement, "retry")
    do("retry", job.retry)
