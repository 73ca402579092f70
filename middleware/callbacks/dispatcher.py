"""Delivers the callbacks of ended jobs: messages to actors once, webhooks at least once.

Any process can do this. One thread claims the due callbacks and sends the messages. Each webhook runs in a thread of
its own, so a slow receiver does not delay the others. An error here affects no job and no worker.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import SystemRandom
from typing import Any

from callboard.middleware.callbacks.undelivered import Undelivered
from callboard.middleware.message import envelope
from callboard.middleware.message.failure import clean
from callboard.middleware.process.outage import OutageLog, reason
from callboard.middleware.process.periodic import UNASKED_SECONDS, Periodic
from callboard.middleware.process.process import Process, Stopping
from callboard.sql.callback_targets import redact_url
from callboard.sql.errors import TRANSIENT
from callboard.sql.pool import Conn, transaction
from callboard.sql.reads import queries
from callboard.sql.rows import Callback, NewItem
from callboard.sql.writes import callbacks, jobs, sends

log = logging.getLogger("callboard.callbacks")
_log_outage = OutageLog(log, "callbacks wait for the database; none is lost: %s")
_log_failure = OutageLog(log, "%s; it is tried again")

#: The most webhooks that a process delivers at the same time, in all and to one host.
WEBHOOKS_AT_ONCE, WEBHOOKS_PER_HOST = 8, 2
#: The most messages that are claimed at a time.
BATCH_MESSAGES = 50
#: Backoff: seconds before the second try, doubled with each try, up to the longest.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 3_600.0
_random = SystemRandom()


@dataclass(slots=True)
class CallbackDispatcher:
    """See the module."""

    process: Process
    _posts: dict[threading.Thread, str] = field(default_factory=dict)  # {thread of a webhook: its host}
    _served: dict[bool, Callback] = field(default_factory=dict)  # {is it a webhook: the callback that was served last}
    _periodic: Periodic = field(init=False)

    def __post_init__(self) -> None:
        self._periodic = Periodic("callbacks", UNASKED_SECONDS, self._step, _log_outage)

    def start(self) -> None:
        """Start to deliver callbacks: now, and whenever `wake` is called."""
        self._periodic.start()
        self.wake()

    def wake(self) -> None:
        """Deliver the due callbacks soon."""
        self._periodic.wake()

    def close(self, timeout: float) -> None:
        """Begin no more deliveries, and wait at most `timeout` seconds for those that run. If one is not recorded by
        then, its claim expires, and another process delivers it again.
        """
        deadline = time.monotonic() + timeout
        self._periodic.stop(timeout)
        for post in list(self._posts):
            post.join(max(deadline - time.monotonic(), 0))

    def _step(self) -> float | None:
        return None if self.process.stopping else self.process.write(self.turn)

    def turn(self, conn: Conn) -> float | None:
        """Begin the due deliveries; return 0 if there may be more, else None."""
        messages = self._claim(conn, webhooks=False, limit=BATCH_MESSAGES, full=[])
        for callback in messages:
            self._send(conn, callback)
        self._posts = {post: host for post, host in self._posts.items() if post.is_alive()}
        while len(self._posts) < WEBHOOKS_AT_ONCE and self._post_next(conn):
            continue
        return 0 if messages else None

    def _claim(self, conn: Conn, *, webhooks: bool, limit: int, full: Sequence[str]) -> list[Callback]:
        """Claim callbacks of hosts and tenants in turn: first those that come after the one that was served last."""
        claim = partial(callbacks.claim_callbacks, conn, webhooks=webhooks, limit=limit, full=full)
        last = self._served.get(webhooks)
        found = (last and claim(after=last)) or claim()
        if found:
            self._served[webhooks] = found[-1]
        return found

    def _send(self, conn: Conn, callback: Callback) -> None:
        """Add the message to its actor's standing job, in the transaction that records the delivery."""
        with _recording_failure(conn, callback), transaction(conn):
            _add_item(conn, callback)

    def _post_next(self, conn: Conn) -> bool:
        """Begin a webhook to a host with fewer than `WEBHOOKS_PER_HOST` running; return False if none is due."""
        full = [host for host, posts in Counter(self._posts.values()).items() if posts >= WEBHOOKS_PER_HOST]
        claimed = self._claim(conn, webhooks=True, limit=1, full=full)
        for callback in claimed:
            with _recording_failure(conn, callback):
                body = json.dumps(payload(conn, callback), separators=(",", ":")).encode()
                post = threading.Thread(target=self._deliver, args=(callback, body), daemon=True)
                post.name = "callboard-webhook"
                post.start()
                self._posts[post] = callback.host or ""
        return bool(claimed)

    def _deliver(self, callback: Callback, body: bytes) -> None:
        """Post a webhook, then record the result, retrying until the database answers."""
        failure = _post(callback, body)
        with suppress(Stopping):
            self.process.retry_write(lambda conn: _record(conn, callback, failure), _log_outage)
        self.wake()


def _post(callback: Callback, body: bytes) -> Undelivered | None:
    from callboard.middleware.callbacks import webhook  # noqa: PLC0415 — its HTTP client takes 50 ms to import

    try:
        webhook.post(callback.url or "", callback.id, body)
    except Undelivered as error:
        return error
    except Exception as error:
        log.exception("unexpected error in a webhook")
        return _as_undelivered(error)
    return None


def _record(conn: Conn, callback: Callback, failure: Undelivered | None) -> None:
    if failure is None:
        callbacks.mark_delivered(conn, callback)
        return
    error = clean(str(failure))
    text = f"job {callback.job}: its callback {callback.id} to {_target(callback)} failed: {error}"
    pause = retry_pause(callback.tries)
    if callbacks.postpone_callback(conn, callback, error, pause=pause, last=failure.last):
        log.warning("%s; that was its last try (%d)", text, callback.tries)
    else:
        _log_failure(Undelivered(text))


@contextmanager
def _recording_failure(conn: Conn, callback: Callback) -> Iterator[None]:
    """Record an error of the block as a failed try. Raises a TRANSIENT error of the database, which is no try."""
    try:
        yield
    except TRANSIENT:
        raise
    except Exception as error:  # noqa: BLE001 — the other callbacks go on after any error
        _record(conn, callback, _as_undelivered(error))


def payload(conn: Conn, callback: Callback) -> dict[str, Any]:
    """Return the body of a callback: the job as the API showed it when it ended, with the job's id in `job`, and the
    callback's id in `id`.

    Raises Undelivered if the job was deleted.
    """
    job = queries.run(conn, queries.ended_job(callback.job, callback.ended))
    if job is None:
        raise Undelivered("its job was deleted", last=True)
    return {**job, "id": callback.id, "job": callback.job}


def retry_pause(tries: int) -> float:
    """Return the seconds until the next try after `tries`: an exponential backoff, half of it random."""
    longest = min(FIRST_PAUSE_SECONDS * 2.0 ** min(tries - 1, 30), LONGEST_PAUSE_SECONDS)
    return longest / 2 + _random.uniform(0, longest / 2)


def _add_item(conn: Conn, callback: Callback) -> None:
    """Add the callback's item to the standing job. Lock order: jobs by id, then the callback; see the statement
    mark_delivered.
    """
    actor, queue = callback.actor or "", callback.queue or ""
    args = envelope.encode_args((payload(conn, callback),), {})
    job = sends.standing_job(conn, actor, queue)
    if not jobs.lock_jobs(conn, [job])[job]:
        raise Undelivered("the day of its actor's standing job just ended")
    if callbacks.mark_delivered(conn, callback):
        item = NewItem(job, actor, queue, callback.id, args, None, int(time.time() * 1000))
        sends.add_items(conn, [item], publishing=False)


def _target(callback: Callback) -> str:
    return redact_url(callback.url) if callback.url else str(callback.actor)


def _as_undelivered(error: Exception) -> Undelivered:
    if isinstance(error, Undelivered):
        return error
    return Undelivered(f"{type(error).__name__}: {reason(error)}")
