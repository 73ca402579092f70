"""A process's part in the record: its ways to the database and the broker, opened when first needed."""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import dramatiq
import psycopg
from dramatiq.broker import MessageProxy

from callboard.middleware.attempts.claim import claim
from callboard.middleware.attempts.in_flight import InFlight
from callboard.middleware.attempts.parking import Parking
from callboard.middleware.callbacks.dispatcher import CallbackDispatcher
from callboard.middleware.callbacks.stage_maker import StageMaker
from callboard.middleware.journal.journal import Entry, Journal
from callboard.middleware.message import stamp
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.process.fatal_exit import check_settings, exit_process, ours
from callboard.middleware.process.heartbeat import Heartbeat
from callboard.middleware.process.outage import RETRY_SECONDS, Stopping, retry_while_unavailable
from callboard.middleware.publish.backlog import QueueBacklogs
from callboard.middleware.publish.publisher import Publisher
from callboard.middleware.publish.transport import Transport
from callboard.middleware.submission.enqueue import new_item, send
from callboard.middleware.submission.lease import SubmissionLease
from callboard.middleware.submission.send_store import SendStore
from callboard.middleware.sweep.sweep import Sweep
from callboard.sql import migrate, settings
from callboard.sql.pool import Conn, Pool, connect, make_pool
from callboard.sql.rows import Claim, JobControl, Outgoing
from callboard.sql.writes import claims, sweep

log = logging.getLogger("callboard.tracking")

T = TypeVar("T")
#: The most connections a process opens: the journal's, the heartbeat's or sweep's, the publisher's, a claim's.
CONNECTIONS = 4
#: Seconds a starting worker waits for the database, and a stopping process for what is still to be written.
BOOT_PATIENCE = 60.0
PATIENCE = 8.0
#: Seconds between two tries at its start.
BOOT_PAUSE = 2.0
#: Seconds that one question of a worker thread takes at most; it is asked again.
ANSWER = 2.0


class Runtime:
    """See the module.

    `make_link` opens this broker's way of publishing; `remote`: other processes consume the broker too; `defers`: its
    consumer acknowledges after the commit by itself. `open_deliveries` counts the messages that the process was given
    and has not settled, `prefetched` names their items (None: those in the worker's queue in memory); `cut_off` says
    why nothing comes from the broker, if nothing does.
    """

    def __init__(
        self,
        url: str,
        make_link: Callable[[], Transport],
        *,
        remote: bool,
        defers: bool,
        open_deliveries: Callable[[], int] | None = None,
        prefetched: Callable[[], list[tuple[int, int]]] | None = None,
        cut_off: Callable[[], str | None] | None = None,
    ) -> None:
        check_settings()
        self.url = url
        self._remote = remote
        self._defers = defers
        self._make_link = make_link
        self._open_deliveries = open_deliveries
        self._prefetched = prefetched
        self._cut_off = cut_off
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._pool: Pool | None = None
        self._journal: Journal | None = None
        self._publisher: Publisher | None = None
        self._sweep: Sweep | None = None
        self._callbacks: CallbackDispatcher | None = None
        self._maker = StageMaker(self.write, self.begin, lambda: self.in_flight.worker, lambda: self.stopping)
        self.heartbeat: Heartbeat | None = None
        self._threads: dramatiq.Worker | None = None
        self._broken = False
        self._deadline: float | None = None
        self.submitting = SubmissionLease(self.write)
        self.stopping = False
        self._parking = Parking(lambda: self.pool, defers=self._defers, stopping=lambda: self.stopping)
        self.in_flight = InFlight(
            adopt=self._adopt,
            claim=lambda mark: retry_while_unavailable(lambda: self._claim(mark), lambda: self.stopping),
            give_back=lambda mark: retry_while_unavailable(
                lambda: self._give_back(mark), lambda: self.stopping
            ),
            note=self._note,
            park=self._parking.park,
            defers=self._defers,
            stopping=lambda: self.stopping,
            time_left=self.time_left,
        )

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
                send_store = SendStore(publishing=lambda: self.publishes)
                self._journal = Journal(
                    self.pool,
                    worker=lambda: self.in_flight.worker,
                    more_may_come=self._more_may_come,
                    in_hand=self.in_flight.attempts,
                    settled=self.in_flight.acknowledge,
                    controlled=self._heed,
                    store=send_store.store,
                    broken=self._give_up,
                )
            return self._journal

    @property
    def publisher(self) -> Publisher:
        """This process's publisher."""
        with self._lock:
            if self._publisher is None:
                transport = self._make_link()
                self._publisher = Publisher(
                    self.pool, transport, QueueBacklogs(transport, settings.QUEUE_DEPTH.get())
                )
            return self._publisher

    @property
    def publishes(self) -> bool:
        """Whether this process can publish: on a broker of its own only when it also consumes it."""
        return self._remote or self.heartbeat is not None

    def write(self, write: Callable[[Conn], T]) -> T:
        """Run a write statement on one of this process's connections; raises psycopg.Error or PoolTimeout."""
        with self.pool.connection() as conn:
            return write(conn)

    def begin(self, job: int) -> None:
        """Publish a job's first items from here, if that is possible; workers go on with it in any case."""
        if self.publishes:
            self.publisher.publish_job(job)

    def check(self) -> None:
        """Wait for the database, and compare its schema; SystemExit, with a line that says why, when it can't work."""
        if warning := self._patiently(self._compare):
            log.warning(warning)

    def _compare(self) -> str | None:
        with connect(self.url) as conn:
            return migrate.check(conn)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What a starting worker asks of a database that may come only now, or go again just then.

        SystemExit when it can't work, since an ordinary exception in this hook would only be logged.
        """
        deadline = time.monotonic() + BOOT_PATIENCE
        while True:
            try:
                return ask()
            except migrate.SchemaError as error:
                log.critical("%s", error)
                sys.exit(1)
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    log.critical("no database after 60 s (DATABASE_URL): %s", str(error).strip())
                    sys.exit(1)
                log.warning("waiting for the database (DATABASE_URL): %s", str(error).strip().splitlines()[0])
                time.sleep(BOOT_PAUSE)

    def open(self, worker: dramatiq.Worker, actors: dict[str, str]) -> None:
        """Be a worker process, with these actors ({name: queue})."""
        self._threads = worker
        prefetched = self._prefetched or partial(_queued, worker)
        self._maker.actors = sorted(actors)
        made = self.heartbeat = Heartbeat(
            self.pool, worker.worker_threads, lambda: list({*self.in_flight.keys(), *prefetched()}),
            self.in_flight.apply_controls, self._trouble, self._advance,
        )  # fmt: skip
        self.in_flight.worker = self._patiently(lambda: made.start(actors))
        self.tend()
        self.journal.watch()

    def tend(self) -> None:
        """Publish what is due, deliver callbacks, and sweep: what a worker does beside its work, and `callboard sweep`
        alone.
        """
        self.publisher.start()
        self._sweep = Sweep(self.pool, self._make_link)
        self._sweep.start()
        self._callbacks = CallbackDispatcher(self.pool)
        self._callbacks.start()

    def _give_up(self, error: BaseException) -> None:
        if self._threads is not None and not self._broken:
            self._broken = True
            log.critical(
                "this worker takes no more messages and ends, since it can't record outcomes: %r", error
            )
            exit_process(self._threads)

    def end(self) -> None:
        """The worker process ends; raises SystemExit when it could not do its work."""
        broken = self._broken
        self.close()
        if broken and ours():
            sys.exit(1)

    def time_left(self) -> float:
        """Seconds for which a process that stops still waits, all of its parts together, from the first question on."""
        if not self.stopping:
            return PATIENCE
        with self._lock:
            if self._deadline is None:
                self._deadline = time.monotonic() + PATIENCE
            return max(self._deadline - time.monotonic(), 0.0)

    def close(self) -> None:
        """Write what there is, give back every claim, say goodbye."""
        self.stopping = True
        if self._callbacks:
            self._callbacks.halt()
        self.submitting.stop()
        if self._sweep:
            self._sweep.stop(self.time_left())
        if self._journal and not self._journal.close(self.time_left()):
            log.warning("%d outcomes could not be written; their messages come again", self._journal.pending)
        if self._publisher:
            self._publisher.close(self.time_left())
        self._maker.close(self.time_left() / 4)
        if self.heartbeat:
            self.heartbeat.stop(self.time_left())
        if self._callbacks:
            self._callbacks.close(self.time_left())
        if self._pool:
            self._pool.close(min(self.time_left() + 1.0, 5.0))
        atexit.unregister(self.close)
        self._reset()

    def _advance(self, conn: Conn) -> None:
        if self.in_flight.worker:
            self._maker.look(conn)

    def _trouble(self) -> str | None:
        return self.publisher.trouble or (self._cut_off() if self._cut_off else None)

    # What the hooks need ---------------------------------------------------------------------------------------------

    def send(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> Any:
        """See `send.send`."""
        return send(broker, message, delay, store=self.journal.send, publish=self._publish)

    def _more_may_come(self, ended: int) -> bool:
        """Whether the process holds more messages than the `ended` ones, so that a flush is worth waiting for."""
        if len(self.in_flight) > ended:
            return True
        return self._open_deliveries is not None and self._open_deliveries() > ended

    def postpone(self, mark: Stamp, actor: str) -> bool:
        """Have a message wait for a worker that has its actor; False when no worker ever had it. Raises Stopping."""
        return retry_while_unavailable(
            lambda: self.write(lambda conn: claims.postpone(conn, mark.job, mark.item, mark.attempt, actor)),
            lambda: self.stopping,
        )

    def send_singly(self, marks: Sequence[Stamp]) -> None:
        """Have these items' messages come one by one: one that carried them all came to who can't take it apart."""
        items = [(mark.item, mark.attempt) for mark in marks]
        retry_while_unavailable(
            lambda: self.write(lambda conn: sweep.republish(conn, marks[0].job, items)),
            lambda: self.stopping,
        )

    def _heed(self, controls: Iterable[JobControl]) -> None:
        """What jobs said as outcomes of theirs were recorded."""
        controls = list(controls)
        self.in_flight.apply_controls(controls)
        if self._publisher and any(control.limited for control in controls):
            self._publisher.wake()

    def _note(self, entry: Entry) -> None:
        self.journal.add(entry)

    def _publish(self, out: Outgoing) -> None:
        if out.outbox is not None:  # else it is not this process's claim
            self.publisher.add(out)

    def _adopt(self, message: MessageProxy) -> tuple[Stamp, bool]:
        item = new_item(message, job=0, key=f"message:{message.message_id}", published=True)
        out = retry_while_unavailable(lambda: self._stored(self.journal.send(item)), lambda: self.stopping)
        return Stamp(out.job, out.item, 1), out.suspect

    def _stored(self, waiting: Future[Outgoing]) -> Outgoing:
        """Once it is, however long that takes; but not in a process that stops: then its message comes again."""
        while True:
            try:
                return waiting.result(RETRY_SECONDS)
            except TimeoutError:
                if self.stopping:
                    waiting.cancel()
                    raise Stopping from None

    def _give_back(self, mark: Stamp) -> None:
        with self.pool.connection(ANSWER) as conn:
            claims.give_back(conn, mark.job, mark.item, self.in_flight.worker)

    def _claim(self, mark: Stamp) -> Claim | None:
        with self.pool.connection(ANSWER) as conn:
            return claim(conn, mark, self.in_flight.worker)


def _queued(worker: dramatiq.Worker) -> list[tuple[int, int]]:
    """(job, item) of what a worker of a broker that isn't ours has prefetched: it lies in its queue in memory."""
    options = [entry.message.options for entry in list(worker.work_queue.queue)]
    marks = (stamp.read(own) for own in options if stamp.CHUNK not in own)  # those come again one by one
    return [(mark.job, mark.item) for mark in marks if mark]
