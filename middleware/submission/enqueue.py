"""Sends an app's message: its row is committed first, then the message is published."""

import operator
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import replace
from hashlib import blake2b
from typing import Any, TypeAlias

import dramatiq
import psycopg
from dramatiq.common import q_name
from dramatiq.encoder import JSONEncoder
from dramatiq.message import get_encoder
from dramatiq.middleware import MiddlewareError
from dramatiq.worker import ConsumerThread
from psycopg_pool import PoolTimeout

from callboard.middleware.journal.journal import UncertainCommit
from callboard.middleware.message import envelope, stamp
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.failure import TRACEBACK_CHARS
from callboard.middleware.submission.item_encoding import ITEM_LIMIT_BYTES, BadItem, key_text
from callboard.sql.limits import MAX_SPAN_SECONDS
from callboard.sql.migrate import MISFIT
from callboard.sql.rows import NewItem, Outgoing

#: The most messages that an item may send, and their most bytes: they are recorded in one transaction.
CHILDREN_LIMIT, CHILDREN_LIMIT_BYTES = 100_000, 64 * 2**20
#: Seconds for which a plain send waits for the commit of its row.
SEND_SECONDS = 10.0

#: Stores a message as an item; this process or another one publishes it.
Store: TypeAlias = Callable[[NewItem], Future[Outgoing]]

#: The jobs of the open `with callboard.job(…)` blocks in this context, each with the URL of its database; plain sends
#: go to the last one. Empty: they go to their actor's standing job.
open_blocks: ContextVar[tuple[tuple[int, str], ...]] = ContextVar("callboard_blocks", default=())

#: The id of this process, as Python knows it. After a fork by C code, such as uWSGI's, this may be the id of the
#: parent.
_process = [os.getpid()]
os.register_at_fork(after_in_child=lambda: operator.setitem(_process, 0, os.getpid()))


class NotStored(MiddlewareError):
    """A message was not recorded, so it was not sent; or it is unknown whether it was. The text says which."""


def send(
    broker: dramatiq.Broker, message: Any, delay: int | None, *, attempt: Attempt | None, database: str, store: Store
) -> Any:
    """Send a message on a tracked broker with this database (its URL), and return it; `delay` is in milliseconds.

    Raises NotStored, and BadItem for a message that can't be sent, or that exceeds the limits of one item.

    Messages that an `attempt` sends are kept until its outcome is recorded; its own retry becomes part of that outcome.
    An attempt of a standing job sends at once until its actor returns, because an app that only calls `install` expects
    that.
    """
    broker.emit_before("enqueue", message, delay)
    blocks = open_blocks.get()
    job, place = blocks[-1] if blocks else (0, "")
    item = new_item(message, job=job, delay=delay)
    if attempt is not None and _is_retry(attempt, message, item):
        attempt.retry = replace(item, job=attempt.job, options=envelope.encode_options(_retry_options(message)))
        broker.emit_after("enqueue", message, delay)
        return message
    _check(message, item)
    if job and place != database:
        raise BadItem(
            f"{message.actor_name} is an actor of a broker with another database than job {job}, so the message can't "
            "be an item of that job: send it outside of the callboard.job block"
        )
    # A job that an actor opens is sealed at the end of its block, so sends into it can't wait for the outcome.
    if (
        attempt is None
        or job
        or (attempt.standing and not attempt.hooks)
        or not attempt.add_child(_within_limits(replace(item, job=attempt.job), attempt))
    ):
        _send_now(_keyed(item, message) if comes_off_delay_queue() else item, store)
    broker.emit_after("enqueue", message, delay)
    return message


def send_kept(attempt: Attempt, *, store: Store) -> None:
    """Send the messages that an attempt keeps, because its actor waits for their results. Raises NotStored."""
    for item in attempt.take_sent():
        _send_now(item, store)


def new_item(message: Any, *, job: int, delay: int | None = None) -> NewItem:
    """Return a message as an item to store; `delay` is in milliseconds."""
    args = envelope.encode_args(message.args, message.kwargs)
    options = envelope.encode_options(stamp.without(message.options))
    return NewItem(
        job, message.actor_name, message.queue_name, message.message_id, args, options,
        envelope.timestamp_ms(message.message_timestamp), (delay or 0) / 1000,
    )  # fmt: skip


def foreign_item(message: Any) -> NewItem:
    """Return a message that a producer without Callboard published, as an item to store."""
    return replace(_keyed(new_item(message, job=0), message), published=True)


def delayed_item(message: Any, eta: float) -> NewItem:
    """Return a message of a delay queue as an item to store; `eta`: when it is due, in milliseconds since 1970."""
    canonical = message.copy(queue_name=q_name(message.queue_name))
    # The delay is at least 1 ms: this process would publish a message without a delay at once.
    return replace(_keyed(new_item(canonical, job=0), message), delay=max(0.001, eta / 1000 - time.time()))


def _keyed(item: NewItem, message: Any) -> NewItem:
    """Give an item the key of its message, by which a duplicate is detected.

    The key is the message's id and a digest of its call, because producers in other languages, which write JSON, may
    give all messages the same id. With another encoder there is no digest: it may encode equal calls differently.
    """
    key = f"message:{item.message_id}"
    if type(get_encoder()) is JSONEncoder:
        sent_ms = 0 if isinstance(message.message_timestamp, envelope.Undated) else item.sent_ms
        call = b"%s %d %s" % (item.actor.encode(), sent_ms, item.args)
        key += ":" + blake2b(call, digest_size=8).hexdigest()
    return replace(item, key=key_text(key))


def comes_off_delay_queue() -> bool:
    """Return whether Dramatiq is moving a delayed message to its queue: a consumer's thread sends nothing else.

    A producer without Callboard put the message into the delay queue. It is redelivered if this process dies before it
    acknowledges.
    """
    return isinstance(threading.current_thread(), ConsumerThread)


def _is_retry(attempt: Attempt, message: Any, item: NewItem) -> bool:
    """Return whether a message that a hook sends is the retry of the ending attempt: the same call again.

    A middleware may send the same id with other arguments, to another queue, or after a success: these are new
    messages.
    """
    own = attempt.message
    return (
        own is not None
        and attempt.hooks
        and (attempt.interrupted or not attempt.returned)
        and attempt.retry is None
        and (message.message_id, message.queue_name, message.actor_name)
        == (own.message_id, own.queue_name, own.actor_name)
        and (message.args is own.args or item.args == envelope.encode_args(own.args, own.kwargs))
    )


def _check(message: Any, item: NewItem) -> None:
    """Raise BadItem for a message that no worker could read, with an invalid delay, or with more bytes of arguments
    than `submit` takes.
    """
    if not envelope.has_fields(message):
        raise BadItem(
            "the message's actor name, queue name and id must be texts without control characters, and its keyword "
            "arguments and options must be dicts"
        )
    if not item.delay <= MAX_SPAN_SECONDS:
        raise BadItem(f"a delay must be a number of milliseconds that is no longer than {MAX_SPAN_SECONDS:,} s")
    if len(item.args) > ITEM_LIMIT_BYTES:
        raise BadItem(f"the message has {len(item.args):,} bytes of arguments, and {ITEM_LIMIT_BYTES:,} are allowed")


def _within_limits(item: NewItem, attempt: Attempt) -> NewItem:
    """Return an item that an attempt sends. Raises BadItem for too many items, or bytes, for one transaction."""
    if attempt.children >= CHILDREN_LIMIT or attempt.child_bytes + item.size > CHILDREN_LIMIT_BYTES:
        raise BadItem(
            f"an item may send {CHILDREN_LIMIT:,} messages, of {CHILDREN_LIMIT_BYTES // 2**20} MiB together, since "
            "they go out when it succeeds: send more in a block `with callboard.job(…)`, or by callboard.submit"
        )
    return item


def _retry_options(message: Any) -> dict[str, Any]:
    """Return a retried message's own options; Dramatiq's traceback in them is cut to its end."""
    options = stamp.without(message.options)
    if isinstance(text := options.get("traceback"), str):
        options["traceback"] = text[-TRACEBACK_CHARS:]
    return options


def _send_now(item: NewItem, store: Store) -> None:
    stored = store(item)
    try:
        try:
            stored.result(SEND_SECONDS)
        except TimeoutError:
            if stored.cancel():
                raise
            stored.result(SEND_SECONDS)  # the journal is writing it now
    except (psycopg.Error, PoolTimeout, TimeoutError) as error:
        why = str(error).strip() or "no answer in time"
        if isinstance(error, UncertainCommit) or not stored.done():
            raise NotStored(
                f"it is unknown whether the message is recorded; if it is, it runs (DATABASE_URL): {why}"
            ) from error
        if isinstance(error, MISFIT):
            why = "it has no callboard schema that fits this code; run `callboard migrate`"
        if isinstance(error, TimeoutError) and _process != [os.getpid()]:
            raise NotStored(
                "the message was not sent: C code has forked this process, which lacks the thread that records it;"
                " start uWSGI with enable-threads and py-call-uwsgi-fork-hooks"
            ) from error
        raise NotStored(f"the message was not sent, since it can't be recorded (DATABASE_URL): {why}") from error
