"""The sweep: whatever is stuck is repaired. One process at a time does it, elected by a lease that lapses by itself."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.journal.rescue import rescue
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.periodic import Periodic
from callboard.middleware.publish.transport import Transport
from callboard.middleware.sweep.lost_messages import LostMessageSearch
from callboard.middleware.sweep.retention import Retention
from callboard.sql import timings
from callboard.sql.errors import MISCONFIGURED, TRANSIENT
from callboard.sql.pool import Conn, Pool
from callboard.sql.writes import claims, jobs, stages, submission, sweep, workers
from callboard.sql.writes.lanes import clear_lanes

log = logging.getLogger("callboard.sweep")
_complain = OutageLog(log, "the sweep can not do all its work, trying on: %s")

Step = Callable[[Conn], object]
#: Seconds between two rounds, and for which the lease of the one that sweeps holds.
PERIOD = 2.0
LEASE = 10.0
#: Seconds between two samples of a job, and between two searches for lost messages.
SAMPLE = 4.0
SEARCH = 5.0


@dataclass(slots=True)
class Sweep:
    """See the module. `link` opens a way to ask the broker."""

    pool: Pool
    transport: Callable[[], Transport]
    _holder: str = field(
        default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{time.monotonic_ns()}"
    )
    _steady_since: float = 0.0  # since when the database has answered without a break
    _sampled: float = 0.0
    _searched: float = 0.0
    _looked: float = 0.0  # when the database was last asked for the lease
    _search: LostMessageSearch = field(init=False)
    _periodic: Periodic = field(init=False)
    _retention: Retention = field(default_factory=Retention)

    def __post_init__(self) -> None:
        self._search = LostMessageSearch(self.transport)
        self._periodic = Periodic("sweep", PERIOD, self._look, _complain)

    def start(self) -> None:
        """Sweep in a thread, whenever this process is the elected one."""
        self._periodic.start()
        self._periodic.wake()

    def stop(self, patience: float = 5.0) -> None:
        """End, and let another process take over at once; a database that is away is waited for half of that."""
        self._periodic.stop(patience / 4)
        try:
            with self.pool.connection(timeout=patience / 4) as conn:
                sweep.drop_lease(conn, "sweep", self._holder)
        except (psycopg.Error, PoolTimeout):
            log.debug("the lease was not given back; it lapses", exc_info=True)

    def _look(self) -> None:
        try:
            with self.pool.connection() as conn:
                self._note_the_time()
                if self._elected(conn):
                    self.round(conn)
        except TRANSIENT:
            self._steady_since, self._looked = 0.0, time.monotonic()
            log.debug("no sweep: the database is away", exc_info=True)

    def _note_the_time(self) -> None:
        """After a freeze it is not known how the database was meanwhile. Nor is it at the start; but what a worker held
        whose place this one takes has waited for as long as the start took.
        """
        now = time.monotonic()
        if not self._looked:
            self._steady_since = now - timings.DEAD_AFTER_SECONDS / 2
        elif not self._steady_since or now - self._looked > timings.DEAD_AFTER_SECONDS:
            self._steady_since = now
        self._looked = now

    def _elected(self, conn: Conn) -> bool:
        if sweep.keep_lease(conn, "sweep", self._holder, LEASE):
            return True
        self._search.forget()
        return sweep.take_lease(conn, "sweep", self._holder, LEASE)

    def round(self, conn: Conn) -> None:
        """Everything that is due now. Raises psycopg.Error when the database is away, or to be connected to anew."""
        _each(conn, self._due())

    def _due(self) -> Iterator[Step]:
        now = time.monotonic()
        # After an outage of the database nobody's heart has beaten for a while: they get the time to be heard again.
        if now - self._steady_since >= timings.DEAD_AFTER_SECONDS:
            yield from (_bury_dead, _stop_abandoned)
        yield sweep.analyze_grown
        yield from (_seal, _stop_late, jobs.close_stopped, _close, stages.follow)
        if now - self._sampled >= SAMPLE:
            self._sampled = now
            yield from (sweep.sample_jobs, sweep.drop_messages_of_stopped_jobs, clear_lanes)
            yield claims.wake_postponed
        if now - self._searched >= SEARCH:
            self._searched = now
            yield lambda conn: self._search.look(conn, self._holder)
        yield self._retention.round


def _each(conn: Conn, steps: Iterable[Step]) -> None:
    """One that fails keeps no other from being done, unless the connection is gone. What may hold for this connection
    only is raised at the end, so that it isn't lent again.
    """
    amiss: psycopg.Error | None = None
    for step in steps:
        try:
            step(conn)
        except psycopg.Error as error:
            if conn.closed:
                raise
            _complain(error)
            amiss = error if isinstance(error, MISCONFIGURED) else amiss
        except Exception:
            log.exception("the sweep met an error it doesn't know; it goes on")
    if amiss is not None:
        raise amiss


def _bury_dead(conn: Conn) -> None:
    _each(conn, [partial(rescue, worker=worker) for worker in workers.dead_workers(conn)])


def _stop_abandoned(conn: Conn) -> None:
    for job in submission.break_abandoned(conn):
        log.warning("job %d is stopped: its submission broke off", job)


def _seal(conn: Conn) -> None:
    for job in sweep.sealable_jobs(conn):
        submission.seal_job(conn, job)


def _stop_late(conn: Conn) -> None:
    for job in jobs.stop_late(conn):
        log.warning("job %d is stopped: its deadline passed", job)


def _close(conn: Conn) -> None:
    for job in jobs.close_jobs(conn):
        log.error("job %d was done and not closed; it is now. Please report this", job)
