"""Callbacks while workers are killed: none is lost, a webhook's repetitions have one id, a message is queued once."""

import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from callboard.middleware.message.envelope import decode_args
from tests.faults.rig.scenario import ACTORS, TIMEOUT, Scenario, mixed, seconds_since
from tests.support.receiver import Receiver, receiver
from tests.support.workers import wait_until

SETTINGS = {"CALLBOARD_WEBHOOK_SECRET": "s3cret", "CALLBOARD_WEBHOOK_PRIVATE": "on"}
SHORT_PERIODS = 3.0
#: Twice at each: first nothing was sent, then something was.
PLAN = ("called", "delivered", "called:2", "answered", "delivered", "answered")
JOBS, KILLS = 35, 5


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def waiting(scenario: Scenario) -> int:
    """Callbacks that are not over."""
    rows = scenario.sql("SELECT count(*) FROM callboard.callbacks WHERE delivered_at IS NULL AND gave_up_at IS NULL")
    return int(rows[0][0])


def queued(scenario: Scenario) -> Counter[str]:
    """How many items of the actor's standing jobs there are of each id."""
    rows = scenario.sql(
        "SELECT i.args FROM callboard.items AS i"
        " JOIN callboard.jobs AS j ON j.id = i.job_id WHERE j.actor = 'told' AND j.standing_on IS NOT NULL"
    )
    return Counter(decode_args(args)[0][0]["id"] for (args,) in rows)


def ids(scenario: Scenario, kind: str) -> set[str]:
    """Of all callbacks, webhooks (`url`) or messages (`actor`)."""
    return {row[0] for row in scenario.sql(f"SELECT id::text FROM callboard.callbacks WHERE {kind} IS NOT NULL")}


def ran(scenario: Scenario) -> None:
    """Each message ran, and its item succeeded."""
    wanted = len(ids(scenario, "actor"))

    def succeeded() -> bool:
        scenario.restart_ended_workers()
        rows = scenario.sql("SELECT coalesce(sum(succeeded), 0) FROM callboard.jobs WHERE actor = 'told'")
        return int(rows[0][0]) == wanted

    assert wait_until(succeeded, TIMEOUT, pause=0.1)


def test_a_worker_killed_in_the_middle_of_a_callback(scenario: Scenario, there: Receiver) -> None:
    jobs = [scenario.submit("work", mixed(40), on_complete=["told", there.url])]
    scenario.start_worker(env=SETTINGS, short_periods=SHORT_PERIODS, kill_points=PLAN)

    def has_died_at_each() -> bool:
        scenario.restart_ended_workers()
        if all(job.status()["finished_at"] for job in jobs) and not waiting(scenario):
            jobs.append(scenario.submit("work", mixed(40), on_complete=["told", there.url]))
        return len(scenario.deaths()) == len(PLAN)

    assert wait_until(has_died_at_each, 600, pause=0.1), scenario.deaths()
    for job in jobs:
        scenario.wait_for(job, lambda status: status["finished_at"] is not None)
    scenario.wait_for(jobs[0], lambda _: not waiting(scenario))
    for job in jobs:
        scenario.assert_mixed_completed(job, 40)
    died = scenario.deaths()
    assert [death.point for death in died] == [point.partition(":")[0] for point in PLAN]
    calls = Counter(call.id for call in there.calls)
    assert set(calls) == ids(scenario, "url")
    assert calls.total() >= len(jobs) + 2, "what was answered and not recorded came again"
    assert {call.told["job"] for call in there.calls} == {job.id for job in jobs}
    assert queued(scenario) == dict.fromkeys(ids(scenario, "actor"), 1)
    ran(scenario)
    print(f"{len(died)} deaths, {calls.total()} calls for {len(calls)} webhooks")


def test_workers_killed_while_many_callbacks_are_due(scenario: Scenario, there: Receiver) -> None:
    step = allowed = JOBS // (KILLS + 2)

    def when_allowed(handler: BaseHTTPRequestHandler) -> None:
        """A few are answered before each kill, whenever that comes."""
        number = len(there.calls)
        wait_until(lambda: number <= allowed, TIMEOUT)
        handler.send_response(204)
        handler.end_headers()

    there.usual = when_allowed
    jobs = [scenario.submit("work", mixed(2), on_cancel=["told", there.url], delay="1d") for _ in range(JOBS)]
    for job in jobs:
        job.cancel()
    assert waiting(scenario) == 2 * JOBS
    worker = scenario.start_worker(env=SETTINGS, short_periods=SHORT_PERIODS)
    for _ in range(KILLS):
        scenario.wait_for(jobs[0], lambda _: len(there.calls) >= allowed)
        worker.kill()
        allowed = len(there.calls) + step
    assert waiting(scenario) > 0
    allowed = 10 * JOBS
    scenario.wait_for(jobs[0], lambda _: not waiting(scenario))
    calls = Counter(call.id for call in there.calls)
    assert set(calls) == ids(scenario, "url")
    assert len(calls) == JOBS
    assert queued(scenario) == dict.fromkeys(ids(scenario, "actor"), 1)
    ran(scenario)
    print(f"{KILLS} kills, {calls.total()} calls for {JOBS} webhooks")


def test_a_worker_asked_to_stop_leaves_a_receiver_that_never_ends(scenario: Scenario, there: Receiver) -> None:
    def trickles(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            time.sleep(0.1)
            handler.wfile.write(b"x")

    there.usual = trickles
    job = scenario.submit("work", mixed(2), on_complete=there.url)
    modules = (ACTORS, "tests.faults.rig.patient_webhooks")
    worker = scenario.start_worker(env=SETTINGS, short_periods=SHORT_PERIODS, modules=modules)
    scenario.wait_for(job, lambda _: bool(there.calls))
    began = time.monotonic()
    assert worker.stop() == 0
    assert seconds_since(began) < 200, "it would hold the worker for 600 s"
    there.usual = 204
    scenario.wait_for(job, lambda _: not waiting(scenario))
    assert len({call.id for call in there.calls}) == 1
