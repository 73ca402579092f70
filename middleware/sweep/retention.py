"""Finished jobs leave when their time is over, a little in each round of the sweep."""

import logging
import math
import os
import time
from dataclasses import dataclass, field

from callboard.sql.limits import span
from callboard.sql.pool import Conn
from callboard.sql.writes import retention

log = logging.getLogger("callboard.sweep")

#: How long a finished job is kept, where nobody says.
KEEP = "30d"
#: Seconds between two looks for jobs whose time is over, and for which one round clears at most: other duties wait.
LOOK = 10.0
BUDGET = 0.5


def kept(name: str = "CALLBOARD_KEEP", given: str | None = None) -> float | None:
    """What is given, or else ``CALLBOARD_KEEP``, in seconds; None: for ever. Raises ValueError with its name."""
    seconds = span(name, given or os.environ.get("CALLBOARD_KEEP") or KEEP)
    return None if math.isinf(seconds) else seconds


def kept_or_all() -> float | None:
    """The same of a process that goes on whatever it says: what can't be read keeps everything."""
    try:
        return kept()
    except ValueError as error:
        log.error("%s; until that is corrected no job leaves by itself", error)  # noqa: TRY400 — it says all
        return None


@dataclass(slots=True)
class Retention:
    """See the module. `keep`: seconds for which finished jobs are kept that don't say so themselves; None: for ever."""

    keep: float | None = field(default_factory=kept_or_all)
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
