"""The sweep repairs whatever is stuck. One process at a time does it, elected by a lease that lapses by itself. With
nothing to sweep it gives the lease up for a while.
"""

import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import psycopg
from psycopg.errors import LockNotAvailable
from psycopg_pool import PoolTimeout

from callboard.middleware.journal.rescue import rescue
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.periodic import UNASKED_SECONDS, Periodic
from callboard.middleware.process.process import Process
from callboard.middleware.publish.transport import Transport
from callboard.middleware.sweep.lost_messages import LostMessageSearch
from callboard.middleware.sweep.retention import Retention
from callboard.sql import timings
from callboard.sql.errors import DATA_ERRORS, TRANSIENT, is_misconfigured
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import ALL_JOBS, JobPage, Lease
from callboard.sql.writes import claims, jobs, sends, stages, submission, sweep, workers

log = logging.getLogger("callboard.sweep")
_log_error = OutageLog(log, "a step of the sweep failed, and is tried again: %s")

Step = Callable[[Conn], object]
#: Seconds by which the clock of the database may leap: heartbeats are that much younger than what is dead.
LEAP_SECONDS = timings.DEAD_AFTER_SECONDS / 2
#: Seconds within which all that live have beaten, and renewed the leases of their submissions.
RENEWED_SECONDS = timings.SUBMISSION_LEASE_SECONDS / 3 + 5.0
#: Seconds by which its clock may be set back without any consequence.
SET_BACK_SECONDS = 1.0
#: Seconds between two rounds, and while one has left open jobs to the next.
PERIOD_SECONDS, MORE_SECONDS = 2.0, 0.6
#: Seconds for which the lease of the elected process holds after a round.
LEASE_SECONDS = 10.0
#: Seconds between two rounds while there is nothing to sweep.
REST_SECONDS = 40.0
#: Seconds between two samples of a job.
SAMPLE_SECONDS = 4.0
#: Open jobs that one round looks at; the next rounds look at the others. More would hold up the rest of a round.
PAGE_JOBS = 120
#: Seconds after which a step that writes job by job begins no further one: each may wait for a lock.
APART_SECONDS = 2.0
#: Seconds between two searches for lost messages.
SEARCH_SECONDS = 5.0


@dataclass(slots=True)
class Sweep:
    """See the module. `transport` opens a connection to ask the broker how long queues are."""

    process: Process
    transport: Callable[[], Transport]
    _holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{time.monotonic_ns()}")
    _looked: float = 0.0  # when the database was last asked for the lease
    _clock: float = 0.0  # what its clock said then, in seconds; 0: it did not answer
    _steady_since: float = 0.0  # since when the database has answered every time; 0: it did not answer
    _sampled: float = 0.0
    _page_end: int = 0  # the last of the open jobs that were looked at
    _searched: float = 0.0
    _search: LostMessageSearch = field(init=False)
    _retention: Retention = field(default_factory=Retention)
    _periodic: Periodic = field(init=False)

    def __post_init__(self) -> None:
        self._search = LostMessageSearch(self.transport)
        self._periodic = Periodic("sweep", UNASKED_SECONDS, self._step, _log_error)

    def start(self) -> None:
        """Sweep from now on, whenever this process is elected."""
        self._periodic.start()
        self._periodic.wake()

    def note_database(self, clock: float | None, *, unswept: bool) -> None:
        """Note what the clock of the database says, in seconds; None: it does not answer. Sweep now if no process does
        (`unswept`).
        """
        if clock is not None:
            self._observe_time(clock)
        else:
            self._steady_since, self._looked, self._clock = 0.0, time.monotonic(), 0.0
        if unswept:
            self._periodic.wake()

    def stop(self, timeout: float) -> None:
        """Stop, and give up the lease so that another process is elected at once; wait at most `timeout` seconds."""
        self._periodic.stop(timeout / 4)
        try:
            self.process.write(lambda conn: sweep.release_lease(conn, self._holder), timeout / 4)
        except (psycopg.Error, PoolTimeout):
            log.debug("the lease was not given up; it lapses", exc_info=True)

    def _step(self) -> float:
        try:
            return self.process.write(self._sweep_if_elected)
        except TRANSIENT:
            self.note_database(None, unswept=False)
            log.debug("no sweep: the database does not answer", exc_info=True)
            return PERIOD_SECONDS

    def _sweep_if_elected(self, conn: Conn) -> float:
        with transaction(conn):
            lease = self._elected(conn)
            if lease is None:
                return UNASKED_SECONDS
            if lease.set_back > SET_BACK_SECONDS:
                why = "the clock of the database was set back by %.0f s; what waits is due as before"
                log.warning(why, lease.set_back)
                sweep.follow_clock_set_back(conn, lease.set_back)
        self._observe_time(lease.clock)
        if not lease.anything:
            return UNASKED_SECONDS
        self.round(conn)
        return MORE_SECONDS if self._page_end or self._search.more else PERIOD_SECONDS

    def _observe_time(self, clock: float) -> None:
        """Note since when the database answers. After a freeze of this process that is unknown, so it begins anew. At
        the start it is unknown too, but half of the time is enough: a worker that this one replaces has been dead for
        as long as this one took to start. When its clock has leapt forward, heartbeats and leases that hold seem old.
        """
        now = time.monotonic()
        leapt = self._clock and clock - self._clock - (now - self._looked) > LEAP_SECONDS
        if not self._looked:
            self._steady_since = now - timings.DEAD_AFTER_SECONDS / 2
        elif not self._steady_since or now - self._looked > timings.DEAD_AFTER_SECONDS:
            self._steady_since = now
        if leapt:
            self._steady_since = now + RENEWED_SECONDS - timings.DEAD_AFTER_SECONDS
        self._looked, self._clock = now, clock

    def _elected(self, conn: Conn) -> Lease | None:
        renewed = sweep.renew_lease(conn, self._holder, LEASE_SECONDS, REST_SECONDS)
        if renewed is None or not renewed.anything:
            self._search.forget()
        return renewed or sweep.acquire_lease(conn, self._holder, LEASE_SECONDS, REST_SECONDS)

    def round(self, conn: Conn) -> None:
        """Run the steps that are due. Raises psycopg.Error if the connection is lost or must not be used again."""
        _run(conn, self._due())

    def _due(self) -> Iterator[Step]:
        now = time.monotonic()
        # In an outage of the database no worker could beat: each gets the time to beat again.
        if now - self._steady_since >= timings.DEAD_AFTER_SECONDS:
            yield from (_rescue_dead, sweep.drop_unheld_running, _stop_abandoned)
        yield from (_queue_lapsed_sends, sweep.analyze_grown_tables)
        yield from (_seal_standing, _stop_late, partial(_write_all, statement=jobs.close_stopped), _update_parents)
        if now - self._sampled >= SAMPLE_SECONDS:
            self._sampled = now
            yield from (self._look_at_jobs, partial(_write_all, statement=sweep.drop_messages_of_ended_jobs))
            yield from (claims.make_postponed_due, _end_frozen_copies)
        elif self._page_end:
            yield self._look_at_jobs
        if self._search.more or now - self._searched >= SEARCH_SECONDS:
            self._searched = now
            yield self._search_lost
        yield self._retention.round

    def _search_lost(self, conn: Conn) -> None:
        self._search.run(conn, self._holder)

    def _look_at_jobs(self, conn: Conn) -> None:
        """Sample, close and stop the open jobs of the next page, however many there are."""
        page = sweep.page_of_open_jobs(conn, self._page_end, PAGE_JOBS)
        self._page_end = 0 if page.last == ALL_JOBS.last else page.last
        steps = (sweep.sample_jobs, _close, _stop_without_actor)
        _run(conn, [partial(step, page=page) for step in steps])


def _run(conn: Conn, steps: Iterable[Step]) -> None:
    """Run the steps. A failing step does not stop the others, unless the connection is lost. An error that may hold for
    this connection only is raised at the end, so that the pool closes it.
    """
    misconfigured: psycopg.Error | None = None
    for step in steps:
        try:
            step(conn)
        except psycopg.Error as error:
            if conn.closed:
                raise
            _log_error(error)
            if is_misconfigured(error):
                misconfigured = error
        except Exception:
            log.exception("unexpected error in a step of the sweep; the next step runs")
    if misconfigured is not None:
        raise misconfigured


def _write_all(conn: Conn, statement: Callable[..., list[int]], page: JobPage = ALL_JOBS) -> list[int]:
    """Run a statement that writes the jobs of a page that it finds; return these. If one of them can't be written, as a
    trigger of the user's or a lock may cause, write each alone, for `APART_SECONDS` at most: so in random order.
    """
    try:
        written = statement(conn, page)
    except (*DATA_ERRORS, LockNotAvailable):
        written, until = [], time.monotonic() + APART_SECONDS

        def write(conn: Conn, job: int) -> None:
            if time.monotonic() < until:
                written.extend(statement(conn, JobPage(job - 1, job)))

        found = statement(conn, page, writes=False)
        _run(conn, [partial(write, job=job) for job in random.sample(found, len(found))])
    return written


def _rescue_dead(conn: Conn) -> None:
    _run(conn, [partial(rescue, worker=worker) for worker in workers.dead_workers(conn)])


def _queue_lapsed_sends(conn: Conn) -> None:
    lapsed = sends.lapsed_send_leases(conn)
    _run(conn, [partial(sends.queue_lapsed_sends, job=job, leases=leases) for job, leases in lapsed])


def _stop_abandoned(conn: Conn) -> None:
    for job in _write_all(conn, submission.fail_abandoned_submissions):
        log.warning("job %d is stopped: its submission broke off", job)


def _end_frozen_copies(conn: Conn) -> None:
    if count := sweep.end_frozen_copies(conn):
        why = "%d submissions stood still in a chunk for %.0f s, so their connections are closed: they held their jobs"
        log.warning(why, count, timings.COPY_LIMIT_SECONDS)


def _seal_standing(conn: Conn) -> None:
    def seal(conn: Conn, job: int) -> None:
        with transaction(conn, timings.LOCK_WAIT_SECONDS):
            submission.seal_job(conn, job)

    _run(conn, [partial(seal, job=job) for job in sweep.standing_jobs_to_seal(conn)])


def _stop_late(conn: Conn) -> None:
    for job in _write_all(conn, jobs.stop_overdue_jobs):
        log.warning("job %d is stopped: its deadline passed", job)


def _update_parents(conn: Conn) -> None:
    for error in stages.update_parents(conn):
        _log_error(error)


def _stop_without_actor(conn: Conn, page: JobPage) -> None:
    for job in _write_all(conn, jobs.stop_jobs_without_actor, page):
        log.warning("job %d is stopped: no worker announced its actor", job)


def _close(conn: Conn, page: JobPage) -> None:
    for job in _write_all(conn, jobs.close_jobs, page):
        log.error("job %d had ended and was not closed; it is closed now. Please report this", job)
