"""Deletes expired finished jobs, some rows in each round of the sweep."""

import logging
import time
from dataclasses import dataclass, field

from callboard.sql import settings
from callboard.sql.pool import Conn
from callboard.sql.writes import retention

log = logging.getLogger("callboard.sweep")

#: Seconds between two queries for expired jobs.
LOOK_SECONDS = 10.0
#: The most seconds of deleting in one round, because the sweep has other work.
BUDGET_SECONDS = 0.5


@dataclass(slots=True)
class Retention:
    """See the module. `keep`: seconds for which a finished job without its own `keep` is kept; None: for ever."""

    keep: float | None = field(default_factory=settings.KEEP.get)
    _looked: float | None = None
    #: {job: monotonic time when it is tried again}, for jobs whose own row was locked.
    _locked: dict[int, float] = field(default_factory=dict)

    def round(self, conn: Conn) -> None:
        """Mark the expired jobs, every 10 s, and delete rows of the marked jobs. Raises what `mark_expired` raises; the
        next round goes on.
        """
        now = time.monotonic()
        if self._looked is None or now - self._looked >= LOOK_SECONDS:
            self._looked = now
            retention.delete_old_rows(conn, self.keep)
            for job in retention.mark_expired(conn, self.keep):
                log.info("job %d is deleted: its time is over", job)
        self._locked = {job: until for job, until in self._locked.items() if until > now}
        for job in retention.deleted_jobs(conn):
            if job in self._locked:
                continue
            self._delete(conn, job, now + BUDGET_SECONDS)
            if time.monotonic() > now + BUDGET_SECONDS:
                return

    def _delete(self, conn: Conn, job: int, until: float) -> None:
        """Delete rows of a job until none is left, or until the monotonic time `until`."""
        try:
            for _ in retention.delete_rows(conn, job):
                if time.monotonic() > until:
                    return
        except TimeoutError as error:
            self._locked[job] = time.monotonic() + retention.LOCKED_PAUSE_SECONDS
            log.warning("job %d is not deleted yet: %s", job, error)
            return
        for reason in retention.jobs_set_aside(conn, [job]).values():
            log.warning("job %d is set aside: %s", job, reason)
