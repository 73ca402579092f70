"""The row of a worker process in `workers`, and one thread that polls the database for work.

A process that holds a message, or has just had work, polls twice a second. Idle workers take turns: all together they
poll about four times a second.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from psycopg.errors import LockNotAvailable
from psycopg_pool import PoolTimeout

from callboard.middleware.process.periodic import Periodic
from callboard.middleware.process.process import CONNECTION_SECONDS, Process
from callboard.sql import settings, timings
from callboard.sql.migrate import MISFIT, SchemaError, check_not_outdated
from callboard.sql.pool import Conn
from callboard.sql.rows import DueWork, JobControl, WorkerInfo
from callboard.sql.signature import Signature
from callboard.sql.writes import jobs, workers

log = logging.getLogger("callboard.worker")

#: Seconds between two heartbeats.
BEAT_SECONDS = 2.0
#: Seconds between two polls of a process that is not idle.
LOOK_SECONDS = 0.5
#: Seconds between two polls of an idle worker that is the only one; several workers poll every `SHARED_LOOK_SECONDS`
#: together.
ALONE_LOOK_SECONDS = 0.2
#: Seconds without any work after which a process is idle.
IDLE_SECONDS = 2.0


class OtherBroker(RuntimeError):
    """Workers of another broker use the same database."""


@dataclass(slots=True)
class Heartbeat:
    """The heartbeat of this process; a process that is no worker only polls.

    `held` returns the (job, item) of every message that the process has prefetched or runs. `apply_controls` takes the
    control states of jobs. `trouble` returns why the process is cut off from its broker, or None. `make_stages` makes
    the stages that are due. `rescue` requeues the items of dead processes of this host. `mean_seconds` returns the mean
    durations of actors that are new since the last call. `work_done` returns a value that changes with each piece of
    work; `holds_messages` returns whether the process holds a message. `begin` wakes the parts that have work; its
    argument is None when the database does not answer. `outdated` is called with the reason when an applied migration
    breaks this code. Such a worker sends no more heartbeats, so its items run elsewhere.
    """

    process: Process
    held: Callable[[], Sequence[tuple[int, int]]]
    apply_controls: Callable[[Iterable[JobControl]], None]
    trouble: Callable[[], str | None]
    make_stages: Callable[[Conn], None]
    rescue: Callable[[Conn], None]
    mean_seconds: Callable[[], Mapping[str, float]]
    work_done: Callable[[], object]
    holds_messages: Callable[[], bool]
    begin: Callable[[DueWork | None], None]
    outdated: Callable[[SchemaError], None]
    _looked: float = -timings.CONTROLS_SECONDS
    _beaten: float = 0.0
    _done: object = None
    _worked: float = 0.0
    _waking: threading.Lock = field(default_factory=threading.Lock)
    _declared: dict[str, tuple[str, Signature | None]] = field(default_factory=dict)  # actors that are not yet recorded
    _info: WorkerInfo | None = None  # the values that the process registered; None: it is no worker
    _periodic: Periodic = field(init=False)

    def __post_init__(self) -> None:
        self._periodic = Periodic("heartbeat", min(LOOK_SECONDS, BEAT_SECONDS / 2), self._step, self._on_outage)

    def start(self) -> None:
        """Start to poll; a worker also starts to send heartbeats."""
        self._worked = time.monotonic()
        self._periodic.start()

    def register(
        self, actors: dict[str, str], signatures: dict[str, Signature], broker: str | None,
        is_same: Callable[[str], bool],
    ) -> None:  # fmt: skip
        """Register the process as a worker with these actors ({name: queue}). `broker` names the broker (None: not
        known). `is_same` returns whether a name is another name of this broker.

        Raises OtherBroker, psycopg.Error and PoolTimeout.
        """
        release = settings.RELEASE.get()
        info = WorkerInfo(socket.gethostname(), os.getpid(), self.process.threads, release, actors, signatures, broker)
        with self.process.pool.connection() as conn:
            self.process.worker = workers.register_worker(conn, info)
            self._info = info
            for other, host, theirs in workers.other_brokers(conn, self.process.worker):
                if is_same(theirs):
                    continue
                workers.stop_worker(conn, self.process.worker)
                raise OtherBroker(
                    f"this worker is on {broker}, and worker {other} at {host} uses the same database on {theirs}: "
                    "messages would go to the wrong one. Give each broker and virtual host a database of its own; to "
                    "move to another broker, or to one recreated under another host name, stop the old workers first. "
                    "Nodes of one cluster whose user may not declare exchanges need a common name: rabbitmqctl "
                    "set_cluster_name"
                )
            self._read_controls(conn)  # before a message of a stopped job can arrive
            self.process.runs.open(workers.schema_id(conn), self.process.worker)
        self._beaten = time.monotonic()

    def _register_again(self, conn: Conn, info: WorkerInfo) -> None:
        """Register under a new id, because the database was restored from a backup, or created again. Without it, the
        process would go on, but no other process would see it, rescue its items, or know what it holds.
        """
        self.process.worker = workers.register_worker(conn, info)
        self.process.runs.rename(workers.schema_id(conn), self.process.worker)
        self._looked = -timings.CONTROLS_SECONDS  # the next poll reads the controls of all jobs
        why = "the database has no row of this process, as after a restore from a backup; it is worker %d now"
        log.warning(why, self.process.worker)

    def add_actor(self, name: str, queue: str, signature: Signature | None) -> None:
        """Record at once, in the heartbeat's thread, that the worker has one more actor."""
        self._declared[name] = queue, signature
        self._periodic.wake()

    def _record_actors(self, conn: Conn) -> None:
        declared = self._declared.copy()
        actors = {name: queue for name, (queue, _) in declared.items()}
        signatures = {name: known for name, (_, known) in declared.items() if known is not None}
        try:
            workers.add_actors(conn, self.process.worker, actors, signatures)
        except LockNotAvailable:
            log.debug("new actors are recorded by a later poll: another transaction has locked their rows")
            return
        if self._info is not None:
            self._info.actors.update(actors)
            self._info.signatures.update(signatures)
        for name, announced in declared.items():
            if self._declared[name] is announced:  # it was not declared again meanwhile
                del self._declared[name]

    def stop(self, timeout: float) -> None:
        """Stop polling, and record that the worker stopped; wait at most `timeout` seconds for the database."""
        self._periodic.stop(timeout / 2)
        if not self.process.worker:
            return
        try:
            self.process.write(self._record_stop, timeout=max(timeout / 2, 0.1))
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("this worker's end could not be recorded: %s", str(error).strip())

    def _record_stop(self, conn: Conn) -> None:
        self._report_means(conn)
        workers.stop_worker(conn, self.process.worker)

    def _report_means(self, conn: Conn) -> None:
        if means := self.mean_seconds():
            workers.report_means(conn, means)

    def wake(self) -> None:
        """End the idle state, because a message has arrived. First read the controls of jobs, which an idle process
        reads less often: the message must not begin if its job was paused or stopped meanwhile.
        """
        with self._waking:
            if not self.process.idle:
                return
            try:
                with self.process.pool.connection(CONNECTION_SECONDS) as conn:
                    self._read_controls(conn)
            except (psycopg.Error, PoolTimeout):
                log.debug("a message begins although the control state of its job can't be read", exc_info=True)
            self.process.idle = False
        self._periodic.wake()

    def _step(self) -> float | None:
        now, worker = time.monotonic(), self.process.worker
        beats = worker != 0 and now - self._beaten >= BEAT_SECONDS
        with self.process.pool.connection() as conn:
            held, trouble = (self.held(), self.trouble()) if beats else (None, None)
            due = workers.beat(conn, worker, held, trouble, self._info)
            self._beaten = now if beats else self._beaten
            if due.unknown and self._info is not None:
                self._register_again(conn, self._info)
            if due.controls or now - self._looked > timings.CONTROLS_SECONDS / 2:
                self._read_controls(conn)
            self._looked = now
            if due.outdated:
                self._end_outdated(conn)
            self._note_idle(due)
            self.begin(due)
            if self._declared and worker:
                self._record_actors(conn)
            self._report_means(conn)
            if beats:
                self.rescue(conn)
            if due.stages and worker:
                self.make_stages(conn)
        return _turn(due) if self.process.idle else None

    def _note_idle(self, due: DueWork) -> None:
        done, now = self.work_done(), time.monotonic()
        if done != self._done or self.holds_messages() or due.stages or due.publish_in is not None:
            self._done, self._worked = done, now
        self.process.idle = now - self._worked >= IDLE_SECONDS
        if self.process.idle and self.work_done() != done:  # a message arrived meanwhile: it saw that `idle` was False
            self.process.idle = False

    def _on_outage(self, error: BaseException) -> None:
        log.debug("the database does not answer; trying again", exc_info=error)
        self.begin(None)
        if isinstance(error, MISFIT):  # a table or column that this code uses may be dropped
            with suppress(psycopg.Error, PoolTimeout), self.process.pool.connection(CONNECTION_SECONDS) as conn:
                self._end_outdated(conn)

    def _end_outdated(self, conn: Conn) -> None:
        try:
            check_not_outdated(conn)
        except SchemaError as error:
            self.outdated(error)

    def _read_controls(self, conn: Conn) -> None:
        """Apply the latest controls, or all of them after a gap; close the stopped jobs that have no item in flight."""
        recent = time.monotonic() - self._looked < timings.CONTROLS_SECONDS / 2
        controls = workers.job_controls(conn, timings.CONTROLS_SECONDS if recent else None)
        self.apply_controls(controls)
        if any(control.stopping for control in controls):
            jobs.try_close_stopped(conn)


def _turn(due: DueWork) -> float:
    """Return the seconds until it is this process's turn to poll: the turns of idle workers are evenly spread."""
    each = timings.SHARED_LOOK_SECONDS if due.live > 1 else ALONE_LOOK_SECONDS
    period = min(max(due.live, 1) * each, 1.5 * BEAT_SECONDS)
    pause = (due.rank * each - due.clock) % period
    return pause if pause >= period / 2 else pause + period
