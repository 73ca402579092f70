"""Sends a message of an app: its row is committed first, then the message is published."""

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

#: The most messages that an item may send, and their bytes: they are recorded in one transaction.
CHILDREN_LIMIT, CHILDREN_LIMIT_BYTES = 100_000, 64 * 2**20
#: Seconds that a plain send waits for its row.
SEND_SECONDS = 10.0

#: Stores a message as an item; its process publishes it, or leaves that to others.
Store: TypeAlias = Callable[[NewItem], Future[Outgoing]]

#: The jobs of the `with callboard.job(…)` blocks that are open here: the last one gets plain sends. None: those go to
#: their actor's standing job.
open_blocks: ContextVar[tuple[int, ...]] = ContextVar("callboard_blocks", default=())

#: The id of this process, as Python knows it: C code that forks, as uWSGI's, may leave that of the parent here.
_process = [os.getpid()]
os.register_at_fork(after_in_child=lambda: operator.setitem(_process, 0, os.getpid()))


class NotStored(MiddlewareError):
    """A message could not be recorded, so it was not sent; or it is unknown whether it was, as the text says."""


def send(broker: dramatiq.Broker, message: Any, delay: int | None, *, attempt: Attempt | None, store: Store) -> Any:
    """Do what `enqueue` does on a tracked broker, and return the message; `delay` in milliseconds.

    Raises NotStored, and BadItem for a message that can't be sent, or for the last of too many in one item.

    What an `attempt` sends is kept until its outcome is recorded; its own retry becomes part of that outcome. What an
    attempt of a standing job sends before its actor returns goes at once, as an app expects that adds `install` only.
    """
    broker.emit_before("enqueue", message, delay)
    blocks = open_blocks.get()
    job = blocks[-1] if blocks else 0
    item = new_item(message, job=job, delay=delay)
    if attempt is not None and _is_retry(attempt, message, item):
        attempt.retry = replace(item, job=attempt.job, options=envelope.encode_options(_retry_options(message)))
        broker.emit_after("enqueue", message, delay)
        return message
    _check(message, item)
    # A job that an actor opens is sealed with its block: what is sent into it can't wait for the outcome.
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
    """Send what an attempt has kept until its outcome is recorded, since its actor waits for that. Raises NotStored."""
    for item in attempt.take_sent():
        _send_now(item, store)


def new_item(message: Any, *, job: int, delay: int | None = None) -> NewItem:
    """Return a message as an item to store; `delay` in milliseconds."""
    args = envelope.encode_args(message.args, message.kwargs)
    options = envelope.encode_options(stamp.without(message.options))
    return NewItem(
        job, message.actor_name, message.queue_name, message.message_id, args, options,
        envelope.timestamp_ms(message.message_timestamp), (delay or 0) / 1000,
    )  # fmt: skip


def foreign_item(message: Any) -> NewItem:
    """Return a message that a producer without Callboard has published as an item to store."""
    return replace(_keyed(new_item(message, job=0), message), published=True)


def delayed_item(message: Any, eta: float) -> NewItem:
    """Return a message of a delay queue as an item to store; `eta` is its time in milliseconds since 1970."""
    canonical = message.copy(queue_name=q_name(message.queue_name))
    # With a delay, however short: a message without one would be published from here.
    return replace(_keyed(new_item(canonical, job=0), message), delay=max(0.001, eta / 1000 - time.time()))


def _keyed(item: NewItem, message: Any) -> NewItem:
    """Give an item the key of its message, by which a second copy of it is known.

    The key is the message's id, and a digest of its call: producers in other languages, which write JSON, may give all
    of their messages one id. Another encoder may write an equal call in another way.
    """
    key = f"message:{item.message_id}"
    if type(get_encoder()) is JSONEncoder:
        sent_ms = 0 if isinstance(message.message_timestamp, envelope.Undated) else item.sent_ms
        call = b"%s %d %s" % (item.actor.encode(), sent_ms, item.args)
        key += ":" + blake2b(call, digest_size=8).hexdigest()
    return replace(item, key=key_text(key))


def comes_off_delay_queue() -> bool:
    """Return whether Dramatiq moves a delayed message to its queue: a consumer's thread sends nothing else.

    A stock producer has put it into the delay queue. The message comes again when this process dies before its
    acknowledgement.
    """
    return isinstance(threading.current_thread(), ConsumerThread)


def _is_retry(attempt: Attempt, message: Any, item: NewItem) -> bool:
    """Return whether a message that a hook sends is the next try of the attempt that ends: the same call once more.

    A middleware may send the same id with other arguments, or to another queue, or again after a success: these are
    messages of their own.
    """
    own = attempt.message
    return (
        own is not None
        and attempt.hooks
        and (attempt.struck or not attempt.returned)
        and attempt.retry is None
        and (message.message_id, message.queue_name, message.actor_name)
        == (own.message_id, own.queue_name, own.actor_name)
        and (message.args is own.args or item.args == envelope.encode_args(own.args, own.kwargs))
    )


def _check(message: Any, item: NewItem) -> None:
    """Raise BadItem for a message that no worker could read, whose delay is no span of time, or whose arguments are
    larger than `submit` would take them.
    """
    if not envelope.has_fields(message):
        raise BadItem(
            "the message's names of its actor and its queue, and its id, must be texts without control characters, and "
            "its keyword arguments and options dicts"
        )
    if not item.delay <= MAX_SPAN_SECONDS:
        raise BadItem(f"a delay must be a number of milliseconds that is no longer than {MAX_SPAN_SECONDS:,} s")
    if len(item.args) > ITEM_LIMIT_BYTES:
        raise BadItem(f"the message has {len(item.args):,} bytes of arguments, and {ITEM_LIMIT_BYTES:,} are allowed")


def _within_limits(item: NewItem, attempt: Attempt) -> NewItem:
    """Return an item that an attempt sends; raise BadItem when it sends too many, or too much, for one transaction."""
    if attempt.children >= CHILDREN_LIMIT or attempt.child_bytes + item.size > CHILDREN_LIMIT_BYTES:
        raise BadItem(
            f"an item may send {CHILDREN_LIMIT:,} messages, of {CHILDREN_LIMIT_BYTES // 2**20} MiB together, since "
            "they go out when it succeeds: send more in a block `with callboard.job(…)`, or by callboard.submit"
        )
    return item


def _retry_options(message: Any) -> dict[str, Any]:
    """Return a retried message's own options, with the end of the traceback that Dramatiq keeps there."""
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
