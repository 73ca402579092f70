"""Finished jobs leave when their time is over, a little in each round of the sweep."""

import logging
import time
from dataclasses import dataclass, field

from callboard.sql import settings
from callboard.sql.pool import Conn
from callboard.sql.writes import retention

log = logging.getLogger("callboard.sweep")

#: Seconds between two looks for jobs whose time is over, and for which one round clears at most: other duties wait.
LOOK = 10.0
BUDGET = 0.5


@dataclass(slots=True)
class Retention:
    """See the module. `keep`: seconds for which finished jobs are kept that don't say so themselves; None: for ever."""

    keep: float | None = field(default_factory=settings.KEEP.get)
    _looked: float | None = None

    def round(self, conn: Conn) -> None:
        """Mark what is due, now and then, and clear some of what is leaving."""
        now = time.monotonic()
        if self._looked is None or now - self._looked >= LOOK:
            self._looked = now
            for job in retention.mark_due(conn, self.keep):
                log.info("job %d leaves: its time is over", job)
            retention.forget(conn, self.keep)
        for job in retention.jobs(conn):
            for _ in retention.clear(conn, job):
                if time.monotonic() - now > BUDGET:
                    return
