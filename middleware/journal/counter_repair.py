"""Counters that don't fit their rows: it can't be, and if it is, it is mended and said, and never in anybody's way."""

import logging
from collections.abc import Iterable

from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.writes.jobs import lock_jobs, recount_jobs

log = logging.getLogger("callboard.journal")


def repair_counters(conn: Conn, jobs: Iterable[int]) -> None:
    """Recount these jobs, and raise an alarm for each that had drifted."""
    numbers = sorted(set(jobs))
    with conn.transaction():
        lock_jobs(conn, numbers)
        for number in numbers:
            for found in queries.run(conn, queries.verify(number))["drift"]:
                log.critical(
                    "job %d said that %s is %d, and counted it is %d; it is mended. Please report this",
                    number, found["check"], found["stored"], found["counted"],
                )  # fmt: skip
        recount_jobs(conn, numbers)
