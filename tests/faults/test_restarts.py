"""Workers, PostgreSQL and RabbitMQ are all restarted over work that waits: a paused job, and messages for days later.

Time is made to pass in the rows: a message that is due in a second was sent long ago.
"""

import statistics
import time
from collections.abc import Callable
from datetime import timedelta

import callboard
from callboard.commands.services import Server
from tests.faults.rig.scenario import ACTORS, POLL, TIMEOUT, Scenario
from tests.faults.test_actions import going, runs_begun
from tests.support.nodes import Node
from tests.support.timer import Timer
from tests.support.workers import wait_until

MODULES = (ACTORS, "tests.faults.rig.delayed_sends")
HOUR, DAY = 3_600_000, 86_400_000
#: Milliseconds; the last is beyond what 32 bits hold.
DELAYS = [2 * HOUR, 3 * DAY, 60 * DAY]
#: Seconds after its time within which a message runs; and a single one, which may have met a busy machine.
ON_TIME_SECONDS, BUSY_SECONDS = 1.0, 60.0


def restart_services(postgres: Server, rabbitmq: Node) -> None:
    rabbitmq.stop()
    postgres.stop()
    postgres.start()
    rabbitmq.start()


def due(scenario: Scenario) -> dict[tuple[int, int], float]:
    """Seconds until each waiting message is to be published, by its job and item."""
    waiting = "SELECT job_id, item, extract(epoch FROM due_at - now())::float8 FROM callboard.outbox"
    return {(job, item): seconds for job, item, seconds in scenario.sql(waiting)}


def make_due_soon(scenario: Scenario, sent: list[tuple[int, int]], nth: int) -> float:
    """Let time pass for items, which no others share a job with, until one of them is due in a second and a half; when
    that is, in seconds since the epoch.
    """
    moved = scenario.sql(
        "UPDATE callboard.outbox SET due_at = due_at - make_interval(secs => %s) WHERE job_id = ANY (%s)"
        " RETURNING job_id, item, extract(epoch FROM due_at)::float8",
        due(scenario)[sent[nth]] - 1.5,
        [job for job, _ in sent],
    )
    return next(float(at) for job, item, at in moved if (job, item) == sent[nth])


def late(scenario: Scenario, job: int, item: int, due_at: float, timer: Timer) -> float:
    """Seconds from when an item was due to when it began, less those in which the machine was busy. `timer` has run
    since before it was due.
    """
    assert wait_until(lambda: scenario.run_log.run_counts(job)[item] > 0, TIMEOUT)
    ((began,),) = scenario.run_log.conn.execute(
        "SELECT extract(epoch FROM began)::float8 FROM runs WHERE job = %s AND item = %s", (job, item)
    )
    return max(float(began) - due_at - timer.stalled, 0.0) if began > due_at else float(began) - due_at


def send_plainly(scenario: Scenario) -> list[tuple[int, int]]:
    for delay in DELAYS:
        scenario.broker.get_actor("work").send_with_options(args=(delay,), delay=delay)
    return scenario.sql(
        "SELECT i.job_id, i.item FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id"
        " WHERE j.actor = 'work' AND j.standing_on IS NOT NULL ORDER BY i.job_id, i.item"
    )


def send_by_timedelta(scenario: Scenario) -> list[tuple[int, int]]:
    with callboard.job("by timedelta") as job:
        for delay in DELAYS:
            scenario.broker.get_actor("work").send_with_options(args=(1,), delay=timedelta(milliseconds=delay))
    return [(job.id, item) for item in range(3)]


def send_from_an_actor(scenario: Scenario) -> list[tuple[int, int]]:
    job = scenario.submit("plans", [{"number": 1, "delays": DELAYS}])
    scenario.wait_for(job, lambda status: status["succeeded"] == 1)
    return [(job.id, item) for item in range(1, 4)]


WAYS: tuple[Callable[[Scenario], list[tuple[int, int]]], ...] = (send_plainly, send_by_timedelta, send_from_an_actor)


def assert_on_time(scenario: Scenario, sent: list[list[tuple[int, int]]], later: callboard.Job) -> None:
    """What was sent begins when it is due, and not before, and so does the job."""
    delays = []
    for done in range(len(DELAYS)):
        timer = Timer()
        due_at = {items[done]: make_due_soon(scenario, items, done) for items in sent}
        delays += [late(scenario, *item, at, timer) for item, at in due_at.items()]
        for items in sent:
            runs = [scenario.run_log.run_counts(job)[item] for job, item in items]
            assert runs == [1] * (done + 1) + [0] * (len(DELAYS) - done - 1)
    assert wait_until(lambda: not due(scenario), TIMEOUT)

    timer = Timer()
    scenario.sql("UPDATE callboard.jobs SET not_before = now() + interval '1.5 s' WHERE id = %s", later.id)
    ((starts_at,),) = scenario.sql(
        "SELECT extract(epoch FROM not_before)::float8 FROM callboard.jobs WHERE id = %s", later.id
    )
    assert 0 <= late(scenario, later.id, 0, starts_at, timer) < BUSY_SECONDS
    scenario.assert_completed(later, total=20)
    print(f"late by {', '.join(f'{seconds:.2f} s' for seconds in delays)}")
    assert min(delays) >= 0
    assert statistics.median(delays) < ON_TIME_SECONDS


def test_what_waits_survives_everything_and_runs_once_when_it_may(
    scenario: Scenario, breakable_postgres: Server, breakable_rabbitmq: Node
) -> None:
    """What was sent for days later, in three ways with three delays each; a job that starts in days; and a paused job,
    which starts nothing and goes on with each item once.
    """
    worker = scenario.start_worker(modules=MODULES)
    sent = [send(scenario) for send in WAYS]
    later = scenario.submit("work", [{"number": n} for n in range(20)], delay="60d")
    waiting = due(scenario)
    for items in sent:
        for item, delay in zip(items, DELAYS, strict=True):
            assert delay / 1000 - TIMEOUT < waiting[item] <= delay / 1000
    worker.kill()
    job, gate = going(scenario, 700)
    with scenario.watch(job) as watcher:
        assert job.pause()["state"] == "paused"
        scenario.all_heard(job)
        heard = time.time()
        gate.touch()
        scenario.wait_for(job, lambda status: status["running"] == 0)
        assert wait_until(lambda: scenario.ready_messages() == 0, TIMEOUT, pause=POLL)
        scenario.workers[-1].kill()
        restart_services(breakable_postgres, breakable_rabbitmq)
        scenario.start_worker(processes=2, modules=MODULES)
        scenario.wait_for(job, lambda status: status["queued"] == 0)
        scenario.all_heard(job)  # in which time a message that is left would start
        assert runs_begun(scenario, job, heard) == 0
        assert scenario.status(job)["state"] == "paused"
        assert job.pause()["state"] == "paused"
        left = due(scenario)
        assert all(waiting[item] - 2 * TIMEOUT < left[item] < waiting[item] for items in sent for item in items)
        assert scenario.ready_messages() == 0
        assert scenario.status(later)["pending"] == 20
        job.resume()
        runs = scenario.assert_completed(job, total=700, watcher=watcher)
    repeated = [item for item, count in runs.items() if count > 1]
    assert len(repeated) <= 16  # in flight in the killed workers, if their outcomes were slow
    assert [action["action"] for action in job.actions()] == ["resume", "pause"]
    assert_on_time(scenario, sent, later)
