"""Submit: any number of items become rows, in chunks, without ever holding more than one chunk."""

import asyncio
import logging
import queue
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import dramatiq

from callboard.job import Job
from callboard.middleware.submission import actor_lookup
from callboard.middleware.submission.actor_lookup import Called
from callboard.middleware.submission.item_encoding import ItemKey
from callboard.middleware.submission.submission import (
    ANALYZE_AFTER_ITEMS,
    Submission,
    check_chunk,
    start,
)
from callboard.middleware.tracking import runtime_of
from callboard.sql.limits import Limits
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import submission as writes

log = logging.getLogger("callboard.submit")


def submit(
    actor: dramatiq.Actor[..., Any] | str, items: Iterable[Any], *, name: str | None = None, key: str | None = None,
    item_key: ItemKey = None, metadata: dict[str, Any] | None = None, tenant: str | None = None, priority: int = 0,
    created_by: str | None = None, max_failures: int | str | None = None, concurrency: int | None = None,
    rate: str | None = None, delay: timedelta | str | None = None, at: datetime | str | None = None,
    deadline: datetime | timedelta | str | None = None, keep: timedelta | str | None = None, chunk: int = 1,
    on_complete: Called = None, on_fail: Called = None, on_cancel: Called = None,
    concurrency_by: str | Mapping[Any, int] | None = None,
) -> Job:  # fmt: skip
    """Make a job of `items`, each one run of `actor` (an actor or its registered name), and start it.

    An item that is a dict gives keyword arguments, a list or tuple arguments, anything else one argument. `items` may
    be any iterable, endless ones apart; it is read as it is stored. With a `key`, the same key gives the same job, and
    a submission that broke off is taken up where it stands when it is submitted again. `item_key` is a field of the
    items or a function: the same item key is stored once in a job. `priority`: lower is first, as Dramatiq's.

    `max_failures`: more items than that, or a share of those that ended, and the job is stopped, `failed`: 10, "5%" (of
    at least 100), "5% of 1000". `concurrency`: items of it in RabbitMQ and in hand, over all workers. `concurrency_by`:
    the same of the items with the same value of an argument, by its name or its position: "customer_id=5", "0=5",
    {"customer_id": 5}. `rate`: items started, as "10/s" or "100/m". `delay`, `at`: nothing starts before. `deadline`:
    what has not started then is cancelled. Times have a zone; spans are timedeltas or texts like "90s", "2h". `keep`:
    the span from its end until it is deleted with all of its rows, or "forever"; else as CALLBOARD_KEEP says.
    `Job.limit` changes all of them.

    `chunk`: items that one message carries, up to 1,000: much cheaper for fast items. The actor gets them one by one
    all the same, or in a list if it is a `batch`; each has its own outcome and retries.

    `on_complete`, `on_fail`, `on_cancel`: an actor, its registered name, the URL of a webhook, or a list of these. When
    the job ends so, each actor gets a message with one dict, each webhook a signed POST of the same as JSON: the job as
    `Job.status` gives it, `job` its id, and `id`, which is the callback's. One that is opened again calls again at its
    next end, with a new id. With a `key` that has a job already, its own callbacks stay.

    Raises ValueError for options that make no sense, UnknownActor, BadItem, SubmittedElsewhere, and psycopg.Error when
    the database can't be reached. When it raises, a job with a key stays open to be taken up again; one without is
    stopped, `failed`, with the reason. So it is when its process dies, within a minute.
    """
    limits = Limits(
        max_failures, concurrency, rate, priority or None, deadline, start(delay, at), keep, concurrency_by
    )
    check_chunk(chunk)
    broker = dramatiq.get_broker() if isinstance(actor, str) else actor.broker
    runtime = runtime_of(broker)
    targets = actor_lookup.targets(
        runtime.write, broker, on_complete=on_complete, on_fail=on_fail, on_cancel=on_cancel
    )
    actor_name, queue_name = actor_lookup.resolve(runtime.write, broker, actor)
    made = runtime.write(
        lambda conn: writes.create_job(
            conn, name=name or actor_name, key=key, tenant=tenant or "", actor=actor_name, queue=queue_name,
            metadata=metadata or {}, created_by=created_by, limits=limits, targets=targets, chunk=chunk,
        )
    )  # fmt: skip
    if made.actor != actor_name:
        raise ValueError(
            f"the job with the key {key!r} is one of the actor {made.actor!r}, not {actor_name!r}"
        )
    if not made.sealed and made.state not in JOB_FINAL:
        with runtime.submissions.held(made.job):
            Submission(runtime.write, runtime.publish_job, made.job, key, item_key, made.consumed).store_all(
                items
            )
    return Job(made.job, runtime)


async def asubmit(
    actor: dramatiq.Actor[..., Any] | str, items: Iterable[Any] | AsyncIterable[Any], **options: Any
) -> Job:
    """As `submit`, without blocking the event loop; `items` may be an async iterable too."""
    if not isinstance(items, AsyncIterable):
        return await asyncio.to_thread(submit, actor, items, **options)
    waiting: queue.Queue[Any] = queue.Queue(maxsize=2)
    storing = asyncio.create_task(asyncio.to_thread(submit, actor, _handed_over(waiting), **options))
    try:
        async for chunk in _chunks(items):
            await _hand_over(waiting, chunk, storing)
            if storing.done():  # there is no more to read for: a bad item, or a job that has them all
                return await storing
        await _hand_over(waiting, None, storing)
    except BaseException as error:
        await _hand_over(waiting, error, storing)
        await asyncio.gather(storing, return_exceptions=True)
        raise
    return await storing


async def _chunks(items: AsyncIterable[Any]) -> AsyncIterator[list[Any]]:
    chunk = []
    async for item in items:
        chunk.append(item)
        if len(chunk) == ANALYZE_AFTER_ITEMS:
            yield chunk
            chunk = []
    yield chunk


async def _hand_over(waiting: "queue.Queue[Any]", what: Any, storing: "asyncio.Task[Job]") -> None:
    while not storing.done():
        try:
            waiting.put_nowait(what)
        except queue.Full:
            await asyncio.sleep(0.005)
        else:
            return


def _handed_over(waiting: "queue.Queue[Any]") -> Iterator[Any]:
    while (what := waiting.get()) is not None:
        if isinstance(what, BaseException):
            raise what
        yield from what
