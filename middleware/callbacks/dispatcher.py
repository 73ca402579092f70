"""Delivers what the ends of jobs queued: messages to actors, once, and webhooks, at least once. Any process does it.

One thread asks the database, sends messages and records; each webhook has a thread of its own while it lasts, so that
one that answers late, or never, holds up no other for long. Nothing that goes wrong here disturbs a job or its worker.
"""

import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from random import SystemRandom
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.callbacks import webhook
from callboard.middleware.callbacks.webhook import Undelivered
from callboard.middleware.message import envelope
from callboard.middleware.message.failure import clean
from callboard.middleware.process.outage import OutageLog, reason
from callboard.sql.callback_targets import shown
from callboard.sql.errors import TRANSIENT
from callboard.sql.pool import Conn, Pool
from callboard.sql.reads import queries
from callboard.sql.rows import Callback, NewItem
from callboard.sql.writes import callbacks, jobs, sends

log = logging.getLogger("callboard.callbacks")
_held_up = OutageLog(log, "callbacks are held up, trying on; none is lost: %s")
_failed = OutageLog(log, "%s; it is tried again")

#: Seconds between two looks for callbacks when there were none.
PERIOD = 0.5
#: Webhooks that a process delivers at a time, in all and to one host; messages claimed at a time.
MANY, EACH = 8, 2
BATCH = 50
#: Seconds before a second try; they double up to the longest.
FIRST, LONGEST = 1.0, 3_600.0
_random = SystemRandom()


@dataclass(slots=True)
class CallbackDispatcher:
    """See the module."""

    pool: Pool
    _answers: SimpleQueue[tuple[Callback, Undelivered | None] | None] = field(default_factory=SimpleQueue)
    _ended: deque[tuple[Callback, Undelivered | None]] = field(default_factory=deque)
    _under_way: Counter[str] = field(default_factory=Counter)  # by host
    _stopping: bool = False
    _over: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Deliver from now on."""
        self._thread = threading.Thread(target=self._run, name="callboard-callbacks", daemon=True)
        self._thread.start()

    def halt(self) -> None:
        """Begin no other delivery."""
        self._stopping = True
        self._answers.put(None)

    def close(self, patience: float) -> None:
        """Wait for what is under way, at most that long: the claim of what isn't recorded then lapses by itself."""
        self.halt()
        if self._thread is not None:
            self._thread.join(patience)
        self._over = True

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over and not (self._stopping and not self._under_way and not self._ended):
            more = False
            try:
                with self.pool.connection() as conn:
                    more = self.turn(conn)
            except (psycopg.Error, PoolTimeout) as error:
                if not self._over:
                    _held_up(error)
            except Exception:
                log.exception("what delivers callbacks met an error it doesn't know; it goes on")
            self._await(0 if more else PERIOD)

    def _await(self, seconds: float) -> None:
        """Take the answers that came, or the first that comes within so many seconds."""
        try:
            answer = self._answers.get(timeout=seconds) if seconds else self._answers.get_nowait()
            while True:
                if answer is not None:
                    self._land(answer)
                answer = self._answers.get_nowait()
        except Empty:
            return

    def _land(self, answer: tuple[Callback, Undelivered | None]) -> None:
        host = answer[0].host or ""
        self._under_way[host] -= 1
        if not self._under_way[host]:
            del self._under_way[host]
        self._ended.append(answer)

    def turn(self, conn: Conn) -> bool:
        """Record what was answered, and begin what is due; True when there is more to do at once."""
        while self._ended:
            self._record(conn, *self._ended[0])
            self._ended.popleft()
        if self._stopping:
            return False
        messages = callbacks.claim_callbacks(conn, webhooks=False, limit=BATCH)
        for callback in messages:
            self._send(conn, callback)
        while self._under_way.total() < MANY and self._next_webhook(conn):
            continue
        return len(messages) == BATCH

    def _record(self, conn: Conn, callback: Callback, failure: Undelivered | None) -> None:
        if failure is None:
            callbacks.settle_callback(conn, callback)
            return
        error = clean(str(failure))
        told = f"job {callback.job}: its callback {callback.id} to {_target(callback)} failed: {error}"
        if callbacks.put_off_callback(conn, callback, error, pause=pause(callback.tries), last=failure.last):
            log.warning("%s; that was its last try (%d)", told, callback.tries)
        else:
            _failed(Undelivered(told))

    # The two kinds ---------------------------------------------------------------------------------------------------

    def _send(self, conn: Conn, callback: Callback) -> None:
        """Make it an item of its actor's standing job, in the transaction that says that it is delivered."""
        with self._failing(conn, callback), conn.transaction():
            _add(conn, callback)

    def _next_webhook(self, conn: Conn) -> bool:
        """Begin one, of a host that has not enough of them; False when there is none."""
        full = [host for host, count in self._under_way.items() if count >= EACH]
        claimed = callbacks.claim_callbacks(conn, webhooks=True, limit=1, full=full)
        for callback in claimed:
            with self._failing(conn, callback):
                body = json.dumps(payload(conn, callback), separators=(",", ":")).encode()
                post = threading.Thread(target=self._post, args=(callback, body), daemon=True)
                post.name = "callboard-webhook"
                post.start()
                self._under_way[callback.host or ""] += 1
        return bool(claimed)

    @contextmanager
    def _failing(self, conn: Conn, callback: Callback) -> Iterator[None]:
        """What goes wrong in the block is a try that failed; when the database is away it is none."""
        try:
            yield
        except Exception as error:
            if isinstance(error, TRANSIENT):
                raise
            self._record(conn, callback, _as_undelivered(error))

    def _post(self, callback: Callback, body: bytes) -> None:
        failure = None
        try:
            webhook.post(callback.url or "", callback.id, body)
        except Undelivered as error:
            failure = error
        except Exception as error:
            log.exception("a webhook met an error that isn't known")
            failure = _as_undelivered(error)
        self._answers.put((callback, failure))


def payload(conn: Conn, callback: Callback) -> dict[str, Any]:
    """What a callback tells: the job as the API described it when it ended, with `job` its id, and `id` the callback's.

    Raises Undelivered when there is no such job any more.
    """
    job = queries.run(conn, queries.ended_job(callback.job, callback.ended))
    if job is None:
        raise Undelivered("its job was deleted", last=True)
    return {**job, "id": callback.id, "job": callback.job}


def pause(tries: int) -> float:
    """Seconds until the next try after so many: doubling, and each somewhat different, so that they spread."""
    longest = min(FIRST * 2.0 ** min(tries - 1, 30), LONGEST)
    return longest / 2 + _random.uniform(0, longest / 2)


def _add(conn: Conn, callback: Callback) -> None:
    """Lock order: jobs by id, then the callback; see settle_callback.sql."""
    actor, queue = callback.actor or "", callback.queue or ""
    told = payload(conn, callback)
    job = sends.standing_job(conn, actor, queue)
    total, open_ = jobs.lock_jobs(conn, [job])[job]
    if not open_:
        raise Undelivered("the day of its actor's standing job just ended")
    if callbacks.settle_callback(conn, callback):
        args = envelope.encode_args((told,), {})
        item = NewItem(job, actor, queue, callback.id, args, None, int(time.time() * 1000))
        sends.add_items(conn, [(total, item)], publishing=False)


def _target(callback: Callback) -> str:
    return shown(callback.url) if callback.url else str(callback.actor)


def _as_undelivered(error: Exception) -> Undelivered:
    if isinstance(error, Undelivered):
        return error
    return Undelivered(f"{type(error).__name__}: {reason(error)}")
