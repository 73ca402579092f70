"""What a process has in hand, and its ways to the database and the broker; opened when first needed, by each process.

The hooks hand attempts in and out here; `send` is where a message goes that an app sends.
"""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import dramatiq
import msgspec
import psycopg
from dramatiq.broker import MessageProxy
from dramatiq.middleware import MiddlewareError
from psycopg_pool import PoolTimeout

from callboard.middleware import envelope, stamp
from callboard.middleware.attempt import Attempt, current_attempt
from callboard.middleware.burial import bury
from callboard.middleware.journal import Entry, Journal
from callboard.middleware.ledger import Ledger
from callboard.middleware.link import Link
from callboard.middleware.outcome import Outcome, describe
from callboard.middleware.publish import Publisher, fixed_depth
from callboard.middleware.sweep import Sweep
from callboard.middleware.worker import Worker
from callboard.sql import migrate, writes
from callboard.sql.pool import Conn, Pool, connect, make_pool
from callboard.sql.rows import Claim, Control, Event, NewItem, Outgoing, Retry
from callboard.sql.states import JOB_FINAL

log = logging.getLogger("callboard.tracking")

T = TypeVar("T")

#: The most connections a process opens: the journal's, the heartbeat's or sweep's, the publisher's, a claim's.
CONNECTIONS = 4
#: Bytes that a result may have as JSON.
RESULT_LIMIT = 262_144
#: Seconds a plain send waits for its row, and a stopping process for what is still to be written.
PATIENCE = 10.0

#: The job that `with callboard.job(…)` names for plain sends; 0: the actor's standing job.
current_job: ContextVar[int] = ContextVar("callboard_job", default=0)


class NotStored(MiddlewareError):
    """A message could not be recorded, so it was not sent."""


class Stopping(RuntimeError):
    """The worker is asked to stop, and the database does not answer."""


class ResultNotStored(ValueError):
    """An actor returned what can't be kept as the item's result."""


class Recorder:
    """See the module. `make_link` opens this broker's way of publishing; `defers` tells that its consumer acknowledges
    after the commit by itself, so that no worker thread needs to wait for it."""

    def __init__(
        self, url: str, make_link: Callable[[], Link], *, remote: bool, defers: bool,
        open_deliveries: Callable[[], int] | None = None, prefetched: Callable[[], list[tuple[int, int]]] | None = None,
    ) -> None:  # fmt: skip
        self.url = url
        self.remote = remote
        self.defers = defers
        self._make_link = make_link
        self._open_deliveries = open_deliveries or (lambda: len(self._attempts))
        self._prefetched = prefetched or list
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._alone = threading.Lock()
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self._controls: dict[int, Control] = {}
        self._pool: Pool | None = None
        self._journal: Journal | None = None
        self._publisher: Publisher | None = None
        self.worker: Worker | None = None
        self._sweep: Sweep | None = None
        self.stopping = False

    # The parts -------------------------------------------------------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """This process's connections."""
        with self._lock:
            if self._pool is None:
                # What a short script sent or submitted last is still on its way when it ends.
                atexit.register(self.close)
                self._pool = make_pool(self.url, size=CONNECTIONS)
            return self._pool

    @property
    def journal(self) -> Journal:
        """This process's journal."""
        with self._lock:
            if self._journal is None:
                ledger = Ledger(publishing=self.publishes)
                self._journal = Journal(
                    self.pool, worker=lambda: self.worker_id, open_deliveries=self._open_deliveries,
                    in_hand=self.in_hand, settled=self._settled, controlled=self.control, store=ledger.store,
                )  # fmt: skip
            return self._journal

    @property
    def publisher(self) -> Publisher:
        """This process's publisher."""
        with self._lock:
            if self._publisher is None:
                self._publisher = Publisher(self.pool, self._make_link(), fixed_depth())
            return self._publisher

    @property
    def publishes(self) -> bool:
        """Whether this process can publish: to a broker that all share any may, to its own only who also consumes it."""
        return self.remote or self.worker is not None

    @property
    def worker_id(self) -> int:
        """This process's id in `workers`."""
        return self.worker.id if self.worker else 0

    def write(self, write: Callable[[Conn], T]) -> T:
        """Run a write statement on one of this process's connections; raises psycopg.Error or PoolTimeout."""
        with self.pool.connection() as conn:
            return write(conn)

    def begin(self, job: int) -> None:
        """Publish a job's first items from here, if that is possible; workers go on with it in any case."""
        if self.publishes:
            self.publisher.begin(job)

    def check(self) -> None:
        """Wait for the database, compare its schema; ends the process, with a line that says why, when it can't work.

        SystemExit, since an ordinary exception in this hook would only be logged.
        """
        deadline = time.monotonic() + 60
        while True:
            try:
                with connect(self.url) as conn:
                    warning = migrate.check(conn)
                if warning:
                    log.warning(warning)
                return
            except migrate.SchemaError as error:
                log.critical("%s", error)
                sys.exit(1)
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    log.critical("no database after 60 s (DATABASE_URL): %s", str(error).strip())
                    sys.exit(1)
                log.warning("waiting for the database (DATABASE_URL): %s", str(error).strip().splitlines()[0])
                time.sleep(2)

    def open(self, threads: int, actors: dict[str, str]) -> None:
        """Be a worker process of so many threads, with these actors ({name: queue})."""
        worker = Worker(self.pool, threads, self.holds, self.control)
        worker.start(actors)
        self.worker = worker
        self.publisher.start()
        self._sweep = Sweep(self.pool, self._depth)
        self._sweep.start()
        self.journal.watch()

    def close(self) -> None:
        """Write what there is, give back every claim, say goodbye."""
        self.stopping = True
        if self._sweep:
            self._sweep.stop()
        if self._publisher:
            self._publisher.close(PATIENCE)
        if self._journal and not self._journal.close(PATIENCE):
            log.warning("%d outcomes could not be written; their messages come again", self._journal.pending)
        if self.worker:
            self.worker.stop()
        if self._pool:
            self._pool.close()
        atexit.unregister(self.close)
        self._reset()

    def _depth(self, queue: str) -> int | None:
        link = self._make_link()
        try:
            return link.depth(queue)
        except Exception:
            return None
        finally:
            link.close()

    # Attempts --------------------------------------------------------------------------------------------------------

    def take(self, message: MessageProxy) -> Attempt | None:
        """The attempt that a delivered message carries; None when it must not run."""
        if getattr(message, "stale", False):
            return None  # its connection is gone: RabbitMQ delivers it again
        try:
            return self._take(message)
        except Stopping:
            message.deferred = True  # type: ignore[attr-defined]
            return None

    def _take(self, message: MessageProxy) -> Attempt | None:
        mark = stamp.read(message.options)
        suspect = bool(getattr(message, "redelivered", False))
        if mark is None:
            mark, known = self._adopt(message)
            suspect |= known
        twin = self._attempts.get((mark.job, mark.item))
        if twin is not None:
            if self._join(twin, mark, message):
                return None
            suspect = True
        if self._stopped(mark.job):
            return None
        control = self._controls.get(mark.job)
        attempt = Attempt(
            mark.job, mark.item, mark.attempt, message.message_id, message.actor_name, [message],
            cancelled=lambda: self._stopped(mark.job),
        )  # fmt: skip
        stale_epoch = control is not None and control.epoch > mark.epoch
        if (suspect or mark.suspect or stale_epoch) and not self._claim(mark, attempt):
            return None
        with self._lock:
            self._attempts[attempt.key] = attempt
        return attempt

    def _join(self, twin: Attempt, mark: stamp.Stamp, message: MessageProxy) -> bool:
        """A copy of what this process has in hand is settled with it; False when it is no longer, or another attempt."""
        with self._lock:
            if twin.number != mark.attempt or self._attempts.get(twin.key) is not twin:
                return False
            twin.deliveries.append(message)
            message.deferred = self.defers  # type: ignore[attr-defined]
            return True

    def _adopt(self, message: MessageProxy) -> tuple[stamp.Stamp, bool]:
        """Record a message that came without a stamp; tells also whether it was on record already."""
        item = new_item(message, job=0, key=f"message:{message.message_id}", published=True)
        out = self._patiently(lambda: self.journal.send(item).result())
        return stamp.Stamp(out.job, out.item, 1), out.suspect

    def _claim(self, mark: stamp.Stamp, attempt: Attempt) -> bool:
        """Ask for an item whose message may be a second copy; False when it must not run here and now."""
        claim = self._patiently(lambda: self._try_claim(mark))
        if claim is None:
            log.warning("a message carries item %d/%d, which the database doesn't have", mark.job, mark.item)
            return False
        if not claim.taken:
            log.info("a copy of the message of item %d/%d is dropped: %s", mark.job, mark.item, claim)
            return False
        attempt.running = True
        if claim.crashes:
            # What crashed a worker before runs alone, so that its neighbours are not charged with its next crash.
            attempt.alone = self._alone.acquire()
        attempt.started = time.monotonic()
        return True

    def _try_claim(self, mark: stamp.Stamp) -> Claim | None:
        with self.pool.connection() as conn:
            claim = writes.claim_item(conn, mark.job, mark.item, mark.attempt, self.worker_id)
            if claim is not None and claim.holder is not None and not claim.taken and not claim.holder_alive:
                # What it held is given back, this item too, under its next attempt: this message has done its work.
                bury(conn, claim.holder)
            return claim

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask the database until it answers. A stopping worker does not wait: the message comes again elsewhere."""
        while True:
            try:
                return ask()
            except (psycopg.Error, PoolTimeout) as error:
                if self.stopping:
                    raise Stopping from error
                log.warning("a message waits for the database: %s", str(error).strip())
                time.sleep(0.5)

    def end(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Hand an attempt that ended to the journal; returns whether its message is to be dead-lettered."""
        attempt.ended = True
        ended = time.monotonic()
        if attempt.alone:
            self._alone.release()
        result = None
        if outcome.state == "succeeded" and attempt.result is not None:
            try:
                result = encode_result(attempt.result)
            except (ResultNotStored, TypeError, ValueError, RecursionError) as error:
                outcome = Outcome("failed", describe(ResultNotStored(f"its result can't be stored: {error}")))
        attempt.result = None
        lost = outcome.state in ("failed", "retrying")
        event = Event(
            attempt.job, attempt.item, attempt.number, outcome.state, ended - attempt.started, ended, self.worker_id,
            failure=outcome.failure, retry=outcome.retry, result=result, ran=attempt.running,
            children=tuple(attempt.hooked if lost else attempt.sent + attempt.hooked),
        )  # fmt: skip
        dead_letter = outcome.state == "failed"
        entry = Entry(attempt, event, dead_letter, None if self.defers else threading.Event())
        for message in attempt.deliveries:
            message.deferred = self.defers
        self.journal.note(entry)
        if entry.recorded is not None:
            entry.recorded.wait()
            return entry.dead_letter
        return dead_letter

    def _settled(self, entries: Sequence[Entry]) -> None:
        """These are committed: now, and only now, their messages may be acknowledged."""
        books: dict[Any, tuple[list[int], list[int]]] = {}
        with self._lock:
            for entry in entries:
                if self._attempts.get(entry.attempt.key) is entry.attempt:
                    del self._attempts[entry.attempt.key]
                if self.defers:
                    for message in entry.attempt.deliveries:
                        books.setdefault(message.book, ([], []))[entry.dead_letter].append(message.tag)
        for book, (acks, nacks) in books.items():
            book.release(acks, nacks)
        for entry in entries:
            if entry.recorded is not None:
                entry.recorded.set()

    def in_hand(self) -> list[Attempt]:
        """The attempts that are not on record yet."""
        return list(self._attempts.values())

    def holds(self) -> list[tuple[int, int]]:
        """(job, item) of everything in hand or prefetched."""
        return list({*self._attempts, *self._prefetched()})

    def control(self, controls: Iterable[Control]) -> None:
        """Heed what jobs say."""
        for control in controls:
            self._controls[control.job] = control

    def _stopped(self, job: int) -> bool:
        control = self._controls.get(job)
        return control is not None and control.state in JOB_FINAL

    # Sending ---------------------------------------------------------------------------------------------------------

    def send(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> Any:
        """What the broker's `enqueue` does for tracked messages: the row first, and the message when that is committed.

        What an attempt sends is kept until its outcome is recorded. `delay` in milliseconds. Raises NotStored.
        """
        attempt = current_attempt.get()
        if attempt is not None and attempt.ended:
            attempt = None
        if attempt is not None and attempt.hooks and message.message_id == attempt.message_id:
            options = envelope.encode_options(stamp.without(message.options))
            attempt.retry = Retry((delay or 0) / 1000, options, message.message_timestamp)
            return message
        broker.emit_before("enqueue", message, delay)
        job = current_job.get()
        if attempt is not None:
            kept = attempt.hooked if attempt.hooks else attempt.sent
            kept.append(new_item(message, job=job or attempt.job, delay=delay))
        else:
            self._send_now(new_item(message, job=job, delay=delay))
        broker.emit_after("enqueue", message, delay)
        return message

    def _send_now(self, item: NewItem) -> None:
        try:
            out: Outgoing = self.journal.send(item).result(PATIENCE)
        except (psycopg.Error, PoolTimeout, TimeoutError) as error:
            why = str(error).strip() or "no answer in time"
            raise NotStored(f"the message was not sent, since it can't be recorded (DATABASE_URL): {why}") from error
        if self.publishes and item.delay == 0:
            self.publisher.hand(out)


def new_item(
    message: Any, *, job: int, delay: int | None = None, key: str | None = None, published: bool = False
) -> NewItem:
    """A message as the item that it is; `delay` in milliseconds."""
    return NewItem(
        job, message.actor_name, message.queue_name, message.message_id,
        envelope.encode_args(message.args, message.kwargs), envelope.encode_options(stamp.without(message.options)),
        message.message_timestamp, (delay or 0) / 1000, key, published,
    )  # fmt: skip


def encode_result(result: Any) -> str:
    """An actor's return value as JSON text; raises TypeError for what has no JSON form, ResultNotStored over the limit."""
    text = msgspec.json.encode(result)
    limit = int(os.environ.get("CALLBOARD_RESULT_LIMIT", RESULT_LIMIT))
    if len(text) > limit:
        raise ResultNotStored(f"{len(text):,} bytes as JSON, and {limit:,} are allowed (CALLBOARD_RESULT_LIMIT)")
    return text.decode()
