"""The parts of a tracked process, built once: the journal, the attempts in flight, the publisher, the sweep."""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from multiprocessing.util import Finalize, register_after_fork
from typing import Any, TypeVar

import dramatiq
import psycopg

from callboard.middleware.attempts.in_flight import InFlight
from callboard.middleware.callbacks.dispatcher import CallbackDispatcher
from callboard.middleware.callbacks.stage_maker import StageMaker
from callboard.middleware.journal.journal import Journal
from callboard.middleware.journal.rescue import rescue_of_host
from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.message.consumers import Consumers
from callboard.middleware.process.fatal_exit import check_settings, exit_process, is_dramatiq_command, stop_process
from callboard.middleware.process.heartbeat import Heartbeat, OtherBroker
from callboard.middleware.process.process import Process
from callboard.middleware.publish.backlog import QueueBacklogs
from callboard.middleware.publish.publisher import Publisher
from callboard.middleware.publish.send_leases import SendLeases
from callboard.middleware.publish.transport import IN_PROCESS, Transport, Unreachable
from callboard.middleware.submission.actor_lookup import own_signature
from callboard.middleware.submission.enqueue import send, send_kept
from callboard.middleware.submission.lease import SubmissionLease
from callboard.middleware.submission.send_store import SendStore
from callboard.middleware.sweep.sweep import Sweep
from callboard.sql import migrate, settings
from callboard.sql.errors import connect_advice
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import DueWork, Outgoing
from callboard.sql.signature import Signature
from callboard.sql.writes import jobs, workers

log = logging.getLogger("callboard.tracking")

T = TypeVar("T")
#: Seconds for which a starting worker waits for the database, and seconds between two tries.
BOOT_SECONDS = 60.0
BOOT_RETRY_SECONDS = 2.0


class Runtime:
    """Builds the parts of one process and closes them; builds them again after a fork, and after `close`.

    `make_transport` returns a Transport to this broker; `remote`: other processes consume from the broker, too.
    """

    def __init__(self, url: str, make_transport: Callable[[], Transport], *, remote: bool) -> None:
        check_settings()
        self.url = url
        self.make_transport = make_transport
        self._remote = remote
        self._build()
        os.register_at_fork(after_in_child=self._build)
        # The last messages of a short script are not yet published when it exits. A multiprocessing child skips atexit
        # functions, so it needs a Finalize.
        atexit.register(self._close_at_exit)
        register_after_fork(self, lambda runtime: Finalize(None, runtime._close_at_exit, exitpriority=0))  # noqa: SLF001

    def _build(self) -> None:
        self._lock = threading.Lock()
        self._worker: dramatiq.Worker | None = None
        self._broken = False
        self._lost_threads = 0
        self._publisher: Publisher | None = None
        self._sweep: Sweep | None = None
        self._callbacks: CallbackDispatcher | None = None
        self.process = Process(self.url, remote=self._remote)
        self.consumers = Consumers()
        self.in_flight = InFlight(
            self.process, self.consumers, partial(self._wake_publisher, 0.0), self._wake_heartbeat
        )
        self._send_leases = SendLeases()
        store = SendStore(self.process, self._send_leases, self._publish).store
        parts = (self.process, self.in_flight, store, self._wake_publisher, self._exit_broken)
        self.journal = self.in_flight.journal = Journal(*parts)
        self._saving = self.in_flight.saving = Journal(*parts, reports=False)
        self.submissions = SubmissionLease(self.process)
        self._stage_maker = StageMaker(self.process, self.publish_job)
        self._heartbeat = Heartbeat(
            self.process, self.in_flight.held, self.in_flight.apply_controls, self._trouble,
            self._stage_maker.make_due, self._rescue, self.in_flight.mean_seconds, self._work_done,
            partial(self.in_flight.expects_more, 0), self._begin_due, self._end_outdated,
        )  # fmt: skip

    @property
    def publisher(self) -> Publisher:
        """This process's publisher; created on first use."""
        with self._lock:
            if self._publisher is None:
                transport = self.make_transport()
                self._publisher = Publisher(
                    self.process, transport, QueueBacklogs(transport, settings.QUEUE_DEPTH.get()), self._send_leases
                )
            return self._publisher

    def write(self, statement: Callable[[Conn], T]) -> T:
        """See `Process.write`. Raises SchemaError, whose text says what to do, if the schema does not fit this code."""
        try:
            return self.process.write(statement)
        except migrate.MISFIT:
            self._compare()
            raise

    def when_written(self, call: Callable[[], None]) -> None:
        """Call `call` once, when all outcomes so far are committed and acknowledged; see `Journal.when_written`."""
        self._saving.when_written(partial(self.journal.when_written, call))

    # What the hooks need ---------------------------------------------------------------------------------------------

    def send(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> Any:
        """See `enqueue.send`."""
        return send(broker, message, delay, attempt=self._attempt(), database=self.url, store=self.journal.send)

    def send_kept(self) -> None:
        """Send at once the messages that the current attempt keeps until its outcome. Raises NotStored, JobClosed."""
        attempt = self._attempt()
        if attempt is not None and attempt.sent:
            send_kept(attempt, store=partial(self.journal.send, child=True))

    def _attempt(self) -> Attempt | None:
        """Return the current attempt; None if there is none, or it belongs to another broker of this process with
        another database.
        """
        attempt = current_attempt.get()
        return attempt if attempt and not attempt.ended and attempt.database in ("", self.url) else None

    def publish_job(self, job: int) -> None:
        """Publish a job's first items from this process, if it can; workers publish the rest."""
        if self.process.publishes:
            self.publisher.publish_job(job)

    def drop_queue(self, queue: str) -> None:
        """Cancel the jobs that have messages in a queue, or have messages to publish to it. When this returns, this
        process publishes no more of them: those that were being published are in the queue, to be purged.

        Raises OtherBroker for an in-process broker whose database other workers use, for example when an app's tests
        flush it.
        """
        if not self._remote and (found := self.write(partial(workers.worker_elsewhere, broker=IN_PROCESS))):
            raise OtherBroker(
                f"this broker is not flushed: that would cancel the jobs of the workers at {found[0]}, which are on "
                f"{found[1]} and use the same database. Tests need a database of their own, or none: unset DATABASE_URL"
            )
        self.in_flight.apply_controls(self.write(lambda conn: jobs.stop_jobs_of_queue(conn, queue)))
        if self._publisher:
            self._publisher.forget(queue)

    def _publish(self, out: Outgoing) -> None:
        self.publisher.add(out)

    def _wake_publisher(self, after: float) -> None:
        if self._publisher:
            self._publisher.wake(after)

    def _wake_heartbeat(self) -> None:
        self._heartbeat.wake()

    # The worker ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Wait for the database and compare its schema. On an error it logs one line and raises SystemExit."""
        if warning := self._at_boot(partial(self._compare, rights=True)):
            log.warning(warning)

    def _compare(self, *, rights: bool = False) -> str | None:
        with connect(self.url) as conn:
            if rights:
                migrate.check_rights(conn)
            return migrate.check(conn)

    def _at_boot(self, query: Callable[[], T]) -> T:
        """Run a query of a starting worker, and retry while its database starts or restarts.

        Raises SystemExit on an error or after `BOOT_SECONDS`: Dramatiq would only log an ordinary exception of this
        hook.
        """
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            try:
                return query()
            except (migrate.SchemaError, OtherBroker) as error:
                log.critical("%s", error)
                sys.exit(1)
            except psycopg.Error as error:  # also an unpromoted replica, or a missing right
                if time.monotonic() > deadline:
                    log.critical(
                        "no database that this worker can write to within 60 s: %s; %s, or give its role the rights of "
                        "the one that ran `callboard migrate`",
                        str(error).strip(),
                        connect_advice(error),
                    )
                    sys.exit(1)
                log.warning("waiting for the database (DATABASE_URL): %s", str(error).strip().splitlines()[0])
                time.sleep(BOOT_RETRY_SECONDS)

    def open(self, worker: dramatiq.Worker, actors: dict[str, str], signatures: dict[str, Signature]) -> None:
        """Make this process a worker with these actors ({name: queue}): register it, start to publish and to sweep."""
        self._worker = worker
        self._stage_maker.actors = {name: signatures.get(name) for name in actors}
        self.process.threads = worker.worker_threads
        with closing(self.make_transport()) as transport:
            register = partial(self._heartbeat.register, actors, signatures)
            self._at_boot(partial(register, _name(transport), partial(_is_same, transport)))
        self._at_boot(partial(self.process.write, self._rescue))
        self.maintain()
        self.journal.watch()

    def add_actor(self, actor: dramatiq.Actor[..., Any]) -> None:
        """Announce an actor that is declared while the worker runs, for example by a module that an actor imports. Does
        nothing in a process without a worker.
        """
        queue = actor.queue_name
        if self._worker is not None and queue in (self._worker.consumer_whitelist or {queue}):
            signature = own_signature(actor)
            self._stage_maker.actors = {**self._stage_maker.actors, actor.actor_name: signature}
            self._heartbeat.add_actor(actor.actor_name, queue, signature)

    def maintain(self) -> None:
        """Publish due messages, deliver callbacks, and sweep, in threads. A worker does this in addition to its items;
        `callboard sweep` does only this.
        """
        self.publisher.start()
        self._sweep = Sweep(self.process, self.make_transport)
        self._sweep.start()
        self._callbacks = CallbackDispatcher(self.process)
        self._callbacks.start()
        self._heartbeat.start()

    def _work_done(self) -> tuple[int, int]:
        return self.in_flight.admitted, self.publisher.batches

    def _begin_due(self, due: DueWork | None) -> None:
        """Wake the parts that have work; `due` None: the database does not answer."""
        if self._sweep is not None:
            self._sweep.note_database(None if due is None else due.clock, unswept=due is not None and due.sweep)
        if self._callbacks is not None and due is not None and due.callbacks:
            self._callbacks.wake()
        if due is not None and due.publish_in is not None:
            self._wake_publisher(due.publish_in)

    def _rescue(self, conn: Conn) -> None:
        rescue_of_host(conn, self.process.runs)

    def _trouble(self) -> str | None:
        """Return why the process can't reach its broker, or that it has lost threads; None if neither is so."""
        return self._replace_threads() or self.publisher.trouble or self.consumers.why_cut_off()

    def _replace_threads(self) -> str | None:
        """Stop a worker process that has lost threads, so that it is started again; return a text about the lost
        threads, or None.

        A middleware hook that raises a BaseException other than Exception and SystemExit ends its thread, and Dramatiq
        does not replace it.
        """
        threads = [] if self._worker is None else self._worker.workers
        lost = self._lost_threads if self.process.stopping else sum(not t.is_alive() for t in threads)
        if not lost:
            return None
        trouble = f"{lost} of its {len(threads)} worker threads ended by an error that Dramatiq does not catch"
        if lost != self._lost_threads:
            log.critical("this worker must be started again: %s", trouble)
            if not self._lost_threads and is_dramatiq_command():
                self._broken = True
                stop_process()
            self._lost_threads = lost
        return trouble

    def _exit_broken(self, error: BaseException) -> None:
        if self._worker is not None and not self._broken:
            self._broken = True
            log.critical("this worker takes no more messages and ends, since it can't record outcomes: %r", error)
            exit_process(self._worker)

    def _end_outdated(self, error: migrate.SchemaError) -> None:
        if self._worker is not None:
            self._exit_broken(error)
        elif not self._broken:  # `callboard sweep`
            self._broken = True
            log.critical("%s", error)
            stop_process()

    def end(self) -> None:
        """Close the parts of a worker process. Raises SystemExit(1) if Dramatiq's command ends because of an error."""
        broken = self._broken
        self.close()
        if broken and is_dramatiq_command():
            sys.exit(1)

    def _close_at_exit(self) -> None:
        """Close. Exit functions that run after this one may still send: their messages are stored without a lease,
        because this process no longer publishes, and workers publish them at once.
        """
        self._remote = False
        self.close()

    def close(self) -> None:
        """Write the last outcomes, publish the last messages, end all threads, and release the process's claims."""
        process = self.process
        process.stopping = True
        self.submissions.stop()
        if self._sweep:
            self._sweep.stop(process.time_left())
        for journal in (self.journal, self._saving):
            if not journal.close(process.time_left()):
                log.warning("some outcomes could not be written; their messages are delivered again")
        if self._publisher:
            self._publisher.close(process.time_left())
        self._stage_maker.close(process.time_left() / 4)
        self._heartbeat.stop(process.time_left())
        if self._callbacks:
            self._callbacks.close(process.time_left())
        process.close()
        self._build()


# A worker that can't reach its broker starts anyway, and waits for it.


def _name(transport: Transport) -> str | None:
    try:
        return transport.name()
    except Unreachable:
        return None


def _is_same(transport: Transport, name: str) -> bool:
    try:
        return transport.gave_name(name)
    except Unreachable:
        return True
