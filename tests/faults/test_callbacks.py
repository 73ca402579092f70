"""Callbacks while workers are killed: none is lost, a webhook's repetitions have one id, a message is queued once."""

import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from tests.faults.rig.points import HURRY, MARKS, POINTS, marks
from tests.faults.rig.scene import ACTORS, TIMEOUT, Scene, mixed
from tests.support.receiver import Receiver, receiver
from tests.support.workers import wait_until

MODULES = (ACTORS, "tests.faults.rig.points")
SETTINGS = {"CALLBOARD_WEBHOOK_SECRET": "s3cret", "CALLBOARD_WEBHOOK_PRIVATE": "on", HURRY: "3"}
#: Twice at each: first nothing was sent, then something was.
PLAN = ("called", "told", "called:2", "answered", "told", "answered")
JOBS, KILLS = 60, 5


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def waiting(on: Scene) -> int:
    """Callbacks that are not over."""
    rows = on.sql(
        "SELECT count(*) FROM callboard.callbacks WHERE delivered_at IS NULL AND gave_up_at IS NULL"
    )
    return int(rows[0][0])


def queued(on: Scene) -> Counter[str]:
    """How many items of the actor's standing job there are of each id."""
    rows = on.sql(
        "SELECT convert_from(i.args, 'utf8')::jsonb -> 'args' -> 0 ->> 'id' FROM callboard.items AS i"
        " JOIN callboard.jobs AS j ON j.id = i.job_id WHERE j.actor = 'told' AND j.standing_on IS NOT NULL"
    )
    return Counter(row[0] for row in rows)


def ids(on: Scene, kind: str) -> set[str]:
    """Of all callbacks, webhooks (`url`) or messages (`actor`)."""
    return {row[0] for row in on.sql(f"SELECT id::text FROM callboard.callbacks WHERE {kind} IS NOT NULL")}


def ran(on: Scene) -> None:
    """Each message ran, and its item succeeded."""
    wanted = len(ids(on, "actor"))

    def succeeded() -> bool:
        on.tend()
        rows = on.sql("SELECT coalesce(sum(succeeded), 0) FROM callboard.jobs WHERE actor = 'told'")
        return int(rows[0][0]) == wanted

    assert wait_until(succeeded, TIMEOUT, pause=0.1)


def test_a_worker_killed_in_the_middle_of_a_callback(on: Scene, there: Receiver) -> None:
    marked = on.folder / "marks"
    marked.mkdir()
    jobs = [on.submit("work", mixed(40), on_complete=["told", there.url])]
    on.worker(env={**SETTINGS, POINTS: ",".join(PLAN), MARKS: str(marked)}, modules=MODULES)

    def has_died_at_each() -> bool:
        on.tend()
        if all(job.status()["finished_at"] for job in jobs) and not waiting(on):
            jobs.append(on.submit("work", mixed(40), on_complete=["told", there.url]))
        return len(marks(marked)) == len(PLAN)

    assert wait_until(has_died_at_each, 240, pause=0.1), marks(marked)
    for job in jobs:
        on.until(job, lambda status: status["finished_at"] is not None)
    on.until(jobs[0], lambda _: not waiting(on))
    for job in jobs:
        on.prove_mixed(job, 40)
    died = marks(marked)
    assert [mark.point for mark in died] == [point.partition(":")[0] for point in PLAN]
    calls = Counter(call.id for call in there.calls)
    assert set(calls) == ids(on, "url")
    assert calls.total() >= len(jobs) + 2, "what was answered and not recorded came again"
    assert {call.told["job"] for call in there.calls} == {job.id for job in jobs}
    assert queued(on) == dict.fromkeys(ids(on, "actor"), 1)
    ran(on)
    print(f"{len(died)} deaths, {calls.total()} calls for {len(calls)} webhooks")


def test_workers_killed_while_many_callbacks_are_due(on: Scene, there: Receiver) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.05)
        handler.send_response(204)
        handler.end_headers()

    there.usual = slowly
    jobs = [on.submit("work", mixed(2), on_cancel=["told", there.url], delay="1d") for _ in range(JOBS)]
    for job in jobs:
        job.cancel()
    assert waiting(on) == 2 * JOBS
    worker = on.worker(env=SETTINGS, modules=MODULES)
    killed = 0
    while killed < KILLS and len(there.calls) < JOBS:
        before = len(there.calls)
        on.until(jobs[0], lambda _: len(there.calls) >= before + JOBS // (KILLS + 2) or not waiting(on))
        worker.kill()
        killed += 1
    assert killed > 1
    on.until(jobs[0], lambda _: not waiting(on))
    calls = Counter(call.id for call in there.calls)
    assert set(calls) == ids(on, "url")
    assert len(calls) == JOBS
    assert queued(on) == dict.fromkeys(ids(on, "actor"), 1)
    ran(on)
    print(f"{killed} kills, {calls.total()} calls for {JOBS} webhooks")


def test_a_worker_asked_to_stop_leaves_a_receiver_that_never_ends(on: Scene, there: Receiver) -> None:
    def trickles(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            time.sleep(0.1)
            handler.wfile.write(b"x")

    there.usual = trickles
    job = on.submit("work", mixed(2), on_complete=there.url)
    worker = on.worker(env=SETTINGS, modules=MODULES)
    on.until(job, lambda _: bool(there.calls))
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 14, "it would hold the worker for 15 s"
    there.usual = 204
    on.until(job, lambda _: not waiting(on))
    assert len({call.id for call in there.calls}) == 1
