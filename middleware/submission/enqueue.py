"""Sends a message of an app: its row is committed first, then the message is published."""

from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

import dramatiq
import psycopg
from dramatiq.middleware import MiddlewareError
from psycopg_pool import PoolTimeout

from callboard.middleware.message import envelope, stamp
from callboard.middleware.message.attempt import current_attempt
from callboard.middleware.message.failure import TRACEBACK_CHARS
from callboard.middleware.submission.item_encoding import ITEM_LIMIT_BYTES, BadItem
from callboard.sql.rows import NewItem, Outgoing, Retry

#: Seconds that a plain send waits for its row.
SEND_SECONDS = 10.0

#: The job that a `with callboard.job(…)` block gives to plain sends; 0: the actor's standing job.
current_job: ContextVar[int] = ContextVar("callboard_job", default=0)


class NotStored(MiddlewareError):
    """A message could not be recorded, so it was not sent."""


def send(
    broker: dramatiq.Broker,
    message: Any,
    delay: int | None,
    *,
    store: Callable[[NewItem], Future[Outgoing]],
    publish: Callable[[Outgoing], None],
) -> Any:
    """Do what `enqueue` does on a tracked broker, and return the message; `delay` in milliseconds.

    Raises NotStored, and BadItem for a message whose arguments are too large.

    What an attempt sends is kept until its outcome is recorded; its own retry becomes part of that outcome.
    """
    attempt = current_attempt.get()
    if attempt is not None and attempt.ended:
        attempt = None
    if attempt is not None and attempt.hooks and message.message_id == attempt.message_id:
        options = envelope.encode_options(_retry_options(message))
        attempt.retry = Retry((delay or 0) / 1000, options, message.message_timestamp)
        return message
    broker.emit_before("enqueue", message, delay)
    job = current_job.get()
    if attempt is None or job:
        # A job that an actor opens is sealed with its block: what is sent into it can't wait for the outcome.
        _send_now(_within_limit(new_item(message, job=job, delay=delay)), store, publish)
    elif attempt.hooks:
        attempt.hooked += (_within_limit(new_item(message, job=attempt.job, delay=delay)),)
    else:
        attempt.sent += (_within_limit(new_item(message, job=attempt.job, delay=delay)),)
    broker.emit_after("enqueue", message, delay)
    return message


def new_item(
    message: Any, *, job: int, delay: int | None = None, key: str | None = None, published: bool = False
) -> NewItem:
    """Return a message as an item to store; `delay` in milliseconds."""
    args = envelope.encode_args(message.args, message.kwargs)
    options = envelope.encode_options(stamp.without(message.options))
    return NewItem(
        job, message.actor_name, message.queue_name, message.message_id, args, options, message.message_timestamp,
        (delay or 0) / 1000, key, published,
    )  # fmt: skip


def _within_limit(item: NewItem) -> NewItem:
    """Return the item; raise BadItem when its arguments are larger than `submit` would take them."""
    if len(item.args) > ITEM_LIMIT_BYTES:
        raise BadItem(
            f"the message has {len(item.args):,} bytes of arguments, and {ITEM_LIMIT_BYTES:,} are allowed"
        )
    return item


def _retry_options(message: Any) -> dict[str, Any]:
    """Return a retried message's own options, with the end of the traceback that Dramatiq keeps there."""
    options = stamp.without(message.options)
    if isinstance(text := options.get("traceback"), str):
        options["traceback"] = text[-TRACEBACK_CHARS:]
    return options


def _send_now(
    item: NewItem, store: Callable[[NewItem], Future[Outgoing]], publish: Callable[[Outgoing], None]
) -> None:
    stored = store(item)
    try:
        try:
            out = stored.result(SEND_SECONDS)
        except TimeoutError:
            if stored.cancel():
                raise
            out = stored.result(SEND_SECONDS)  # the journal is writing it now
    except (psycopg.Error, PoolTimeout, TimeoutError) as error:
        why = str(error).strip() or "no answer in time"
        raise NotStored(
            f"the message was not sent, since it can't be recorded (DATABASE_URL): {why}"
        ) from error
    if item.delay == 0:
        publish(out)
