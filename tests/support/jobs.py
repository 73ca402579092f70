"""Jobs in every shape for tests of what reads them, made by the statements that the product uses."""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from callboard.middleware.submission import actor_lookup
from callboard.middleware.submission.actor_lookup import Callbacks
from callboard.sql import timings
from callboard.sql.callback_targets import Targets
from callboard.sql.limits import NO_LIMITS
from callboard.sql.pool import Conn, transaction
from callboard.sql.reads import queries
from callboard.sql.rows import (
    Event,
    Failure,
    NewItem,
    OutcomeState,
    Outgoing,
    PlannedStage,
    Progress,
    Retry,
    Running,
    WorkerInfo,
)
from callboard.sql.states import ITEM_STATES
from callboard.sql.writes import outcomes, publishing, sends, stages, submission, sweep, workers

BAD = Failure("failed", "ValueError", "not a number: <b>12,5</b>", "shop/prices.py:88 in parse", "Traceback …", 11)
NOT_NEEDED = Failure("skipped", "Skip", "unchanged")
SECOND = 1.0
ARGS = b'{"args": [1], "kwargs": {}}'


def status(conn: Conn, job: int) -> dict[str, Any]:
    """The job as the API describes it; its parts add up."""
    found = queries.run(conn, queries.job(job))
    assert found is not None
    assert sum(found[state] for state in ITEM_STATES) == found["total"]
    return found


def let_workers_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker that is registered and never beats live for ten minutes: a test may take more than ten seconds."""
    monkeypatch.setattr(timings, "DEAD_AFTER_SECONDS", 600.0)
    monkeypatch.setattr(timings, "SILENT_SECONDS", 1200.0)


def targets(on_complete: Callbacks = None, on_fail: Callbacks = None, on_cancel: Callbacks = None) -> Targets:
    """What a job calls at its ends; the queue of each actor is `mail`."""
    return actor_lookup.targets(lambda _: ("mail", None), None, on_complete, on_fail, on_cancel)


def claim_outbox(conn: Conn, limit: int) -> list[Outgoing]:
    """Claim messages of the outbox that are due, as a publisher does whose queues have room for all."""
    rooms = {due.queue: limit for due in publishing.due_queues(conn) if due.queue}
    return publishing.claim_outbox(conn, limit, rooms)


def make_worker(conn: Conn, *actors: str, release: str = "2026.11") -> int:
    """A worker that lives, and knows these actors."""
    known = dict.fromkeys(actors or ("work",), "default")
    return workers.register_worker(conn, WorkerInfo("backstage", 4711, 8, release, known))


def make_job(
    conn: Conn, items: int, *, name: str = "a job", actor: str = "work", published: int | None = None,
    sealed: bool = True, tenant: str = "", targets: Targets = None,
) -> int:  # fmt: skip
    """A job of `items` bulk items, of which the first `published` (None: all) are published."""
    job = submission.create_job(
        conn, name=name, key=None, tenant=tenant, actor=actor, queue="default", metadata={"a": 1},
        created_by="anna", targets=targets,
    ).job  # fmt: skip
    chunk = [(json.dumps({"args": [n], "kwargs": {}}).encode(), None) for n in range(items)]
    if chunk:
        submission.store_chunk(conn, job, 0, chunk, keyed=False)
    if sealed:
        submission.seal_job(conn, job)
    if reached := items if published is None else published:
        publish(conn, job, reached)
    return job


def publish(conn: Conn, job: int, watermark: int) -> None:
    """Publish a job's items up to `watermark`."""
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    more = watermark - claim.watermark
    assert publishing.advance_watermark(conn, claim, watermark=watermark, published=more, keep=False)


def record(
    conn: Conn, job: int, ends: Mapping[OutcomeState, Iterable[int]], *, attempt: int = 1, worker: int = 1,
    failure: Failure = BAD, result: str | None = '{"x": 1}', delay: float = 60.0,
) -> None:  # fmt: skip
    """Record how these items of a job ended."""
    failures = {"failed": failure, "retrying": failure, "skipped": NOT_NEEDED}
    now = time.monotonic()
    events = [
        Event(
            job, item, attempt, state, 0.01, now, worker, failures.get(state),
            Retry(delay) if state == "retrying" else None, result if state == "succeeded" else None,
        )
        for state, items in ends.items()
        for item in items
    ]  # fmt: skip
    outcomes.record(conn, events, now)


def run(
    conn: Conn, job: int, items: Iterable[int], *, worker: int = 1, step: str | None = None,
    progress: tuple[float, float | None] | None = None,
) -> None:  # fmt: skip
    """These items have been in hand for a second."""
    far = Progress(*progress) if progress else None
    outcomes.report_running(conn, worker, [Running(job, item, 1, SECOND, step, far) for item in items])


def unheld(conn: Conn, job: int, limit: int) -> list[tuple[int, int]]:
    """Items of a job that are published and that no worker holds: (item, attempt)."""
    found = sweep.unheld_items(conn, [(job, 0, timings.MAX_ITEM)], limit)
    return [(item, attempt) for _, item, attempt, _ in found]


def send(conn: Conn, job: int, item: int, *, actor: str = "work", delay: float = 0.0) -> None:
    """Add an item as a plain send does: with a message in the outbox."""
    args = json.dumps({"args": [item], "kwargs": {}}).encode()
    new = NewItem(job, actor, "default", f"m-{job}-{item}", args, None, int(time.time() * 1000), delay)
    assert sends.add_items(conn, [new], publishing=False, children=[True]) == [(item, None)]


def make_mixed_job(conn: Conn, name: str = "mixed", tenant: str = "") -> int:
    """A job of 100 items with some in every state but cancelled: see MIXED."""
    worker = make_worker(conn)
    job = make_job(conn, 100, name=name, published=80, tenant=tenant)
    moves: dict[OutcomeState, Iterable[int]] = {
        "succeeded": range(20),
        "failed": range(20, 25),
        "skipped": range(25, 30),
        "retrying": range(30, 33),
    }
    record(conn, job, moves, worker=worker)
    run(conn, job, range(40, 43), worker=worker, step="page 3")
    return job


#: What make_mixed_job makes.
MIXED = {
    "pending": 20, "queued": 44, "running": 3, "retrying": 3, "succeeded": 20, "failed": 5, "skipped": 5,
    "cancelled": 0,
}  # fmt: skip


def make_staged(
    conn: Conn, *, on_failure: str = "go on", made: bool = True, targets: Targets = None
) -> tuple[int, list[int]]:
    """A job of two stages: the first of ten items, two of which failed; the second made of the others, unless they
    stop it, or it is not `made` yet: one succeeded, three are queued.
    """
    planned = [
        PlannedStage("fetch", "work", "default", None, on_failure),
        PlannedStage("sum up", "work", "default", "shop.stages:make", "stop"),
    ]
    parent, found = stages.create(
        conn, planned, name="two", key=None, tenant="", metadata={}, created_by="anna", limits=NO_LIMITS,
        targets=targets,
    )  # fmt: skip
    first, second = (stage.id for stage in found)
    worker = make_worker(conn)
    assert submission.store_chunk(conn, first, 0, [(ARGS, None)] * 10, keyed=False) == ("stored", 10)
    submission.seal_job(conn, first)
    publish(conn, first, 10)
    record(conn, first, {"succeeded": range(8), "failed": range(8, 10)}, worker=worker)
    stages.update_parents(conn)
    if made and on_failure == "go on":
        making = stages.claim_stage(conn, worker, ["work"], [])
        assert making is not None
        assert (making.job, making.source, making.makes) == (second, first, "shop.stages:make")
        assert stages.store_inputs(conn, making, 0, [(ARGS, None)] * 8)
        stages.seal_stage(conn, making)
        publish(conn, second, 4)
        record(conn, second, {"succeeded": [0]}, worker=worker)
    return parent, [first, second]


def age(conn: Conn, job: int, seconds: float) -> None:
    """Let a job have been quiet for a while."""
    conn.execute(
        "UPDATE callboard.jobs SET updated_at = now() - make_interval(secs => %s) WHERE id = %s", (seconds, job)
    )


def let_midnight_pass(conn: Conn, days: int = 1) -> None:
    """Let the standing jobs be those of so many days before: nobody who sends or receives has noticed midnight yet."""
    lock = "SELECT id FROM callboard.jobs WHERE standing_on IS NOT NULL ORDER BY id FOR NO KEY UPDATE"
    shift = "UPDATE callboard.jobs SET standing_on = standing_on + %s WHERE id = ANY(%s)"
    with transaction(conn):
        moved = [job for (job,) in conn.execute(lock)]
        for change in (-10_000, 10_000 - days):  # by way of years before: of an actor no two may have one day meanwhile
            conn.execute(shift, (change, moved))


def cancel(conn: Conn, job: int) -> None:
    """Stop a job."""
    conn.execute(
        "UPDATE callboard.jobs SET state = 'cancelled', reason = 'wrong file', finished_at = now(),"
        " epoch = epoch + 1 WHERE id = %s",
        (job,),
    )
