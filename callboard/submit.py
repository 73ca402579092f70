"""Submit: any number of items become the rows of a job, in chunks; at most two chunks are in memory."""

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from callboard.job import Job
from callboard.middleware.submission import actor_lookup
from callboard.middleware.submission.actor_lookup import Actor, Callbacks
from callboard.middleware.submission.async_source import AsyncSource
from callboard.middleware.submission.item_encoding import ItemKey, Lane, encode_all
from callboard.middleware.submission.submission import Submission, check_chunk, check_items, start, submitting
from callboard.middleware.tracking import runtime_of
from callboard.sql.limits import Limits
from callboard.sql.writes import submission as writes

#: Items that are read from an async source at once: each may have a megabyte.
READ_ITEMS = 100


def submit(
    actor: Actor, items: Iterable[Any], *, name: str | None = None, key: str | None = None, item_key: ItemKey = None,
    metadata: dict[str, Any] | None = None, tenant: str | None = None, priority: int = 0,
    created_by: str | None = None, max_failures: int | str | None = None, concurrency: int | None = None,
    rate: str | None = None, delay: timedelta | str | None = None, at: datetime | str | None = None,
    deadline: datetime | timedelta | str | None = None, keep: timedelta | str | None = None, chunk: int | None = None,
    on_complete: Callbacks = None, on_fail: Callbacks = None, on_cancel: Callbacks = None,
    concurrency_by: str | Mapping[Any, int] | None = None, lanes: int | None = None, key_reuse: bool = False,
) -> Job:  # fmt: skip
    """Make a job of `items`, each one call of `actor`, and start it. Return the job when all items are stored.

        job = callboard.submit(resize, [{"photo": 1}, {"photo": 2}], max_failures="5%")
        job.wait()

    What to run:

    - `actor`: an actor, or its registered name.
    - `items`: any finite iterable; it is streamed. A dict becomes keyword arguments, a list or tuple becomes positional
      arguments, any other value becomes one argument.
    - `chunk`: the maximum number of items in one message, from 1 to 1,000: many are much cheaper for fast items. None:
      as many as the actor processes in about 30 ms, and one at the end of the job. The actor is called once per item,
      or with a list if it is a `batch`; each item has its own outcome and retries.

    What the job is:

    - `name`: shown to readers; None: the actor's name.
    - `key`: the same submission with the same key gives the same job. If the first submission was interrupted, this one
      continues after the stored items. Other options or items, or another order, raise KeyInUse. `key_reuse`: if the
      job with this key is finished, make a new job; the old one loses the key.
    - `item_key`: a field of the items, or a function of an item. Of items with the same item key, one is stored.
    - `metadata`: a dict that is stored with the job as JSON. `tenant`: the owner of the job. `created_by`: who
      submits it.

    How it runs (`Job.limit` changes these later):

    - `priority`: jobs with a lower number are published first, as with Dramatiq.
    - `concurrency`: the maximum number of items in RabbitMQ or running, over all workers. `concurrency_by`: the same
      for each value of one argument, by name or position: "customer_id=5", "0=5", {"customer_id": 5}. `lanes`: the
      maximum number of values of that argument at once.
    - `rate`: the maximum number of items that start per time, like "10/s" or "100/m".
    - `max_failures`: if more items fail, the job is stopped as `failed`: 0, 10, "5%" (of at least 100 that ended), "5%
      of 1000".
    - `delay`, `at`: no item starts before this time. `deadline`: items that have not started by then are cancelled.
    - `keep`: how long the job is kept after its end, or "forever"; None: as CALLBOARD_KEEP says.

    Times have a time zone; time spans are timedeltas, or texts like "90s" and "2h".

    What it calls:

    - `on_complete`, `on_fail`, `on_cancel`: an actor, its registered name, the URL of a webhook, or a list of these. At
      this end of the job an actor gets a message with one dict, and a webhook gets a signed POST of the same as JSON:
      the fields of `Job.status`, the job's id as `job`, and the callback's own id as `id`. A retried job calls again at
      its next end, with a new `id`. A job that was found by `key` keeps its callbacks.

    Raises ValueError for an invalid option, KeyInUse, UnknownActor, BadItem for an item that can't be stored,
    SubmittedElsewhere, psycopg.Error if the database can't be reached, and errors of `items`. A job with a key then
    stays open and can be submitted again. A job without a key is stopped as `failed`, with the reason; the same happens
    within a minute if the process dies.
    """
    limits = Limits(max_failures, concurrency, rate, priority, deadline, start(delay, at), keep, concurrency_by, lanes)
    check_chunk(chunk)
    check_items(items)
    broker = actor_lookup.broker_of(actor)
    runtime = runtime_of(broker)
    targets = actor_lookup.targets(runtime.write, broker, on_complete, on_fail, on_cancel)
    actor_name, queue_name = actor_lookup.resolve(runtime.write, broker, actor)
    lane = None
    if limits.lane_by:
        lane = Lane(limits.lane_by, actor_lookup.signature(runtime.write, broker, actor))
        lane.check()
    with submitting(actor_name, queue_name) as trace:
        made = runtime.write(
            lambda conn: writes.create_job(
                conn, name=actor_name if name is None else name, key=key, tenant=tenant, actor=actor_name,
                queue=queue_name, metadata=metadata, created_by=created_by, limits=limits, targets=targets,
                chunk=chunk, key_reuse=key_reuse, trace=trace,
            )
        )  # fmt: skip
        here = actor_lookup.signature_here(broker, actor)
        rows = encode_all(items, item_key=item_key, signature=here, lane=lane)
        Submission(
            runtime.write, runtime.submissions, runtime.publish_job, made, key, keyed=item_key is not None
        ).store(rows)
    return Job(made.job, runtime)


async def asubmit(actor: Actor, items: Iterable[Any] | AsyncIterable[Any], **options: Any) -> Job:
    """Like `submit`, without blocking the event loop. `items` may also be an async iterable.

    If the call is cancelled, the submission is interrupted, with the effects that `submit` describes.
    """
    if not isinstance(items, AsyncIterable):
        return await asyncio.to_thread(submit, actor, items, **options)
    source = AsyncSource(items, READ_ITEMS)
    return await source.read_by(asyncio.to_thread(submit, actor, source, **options))
