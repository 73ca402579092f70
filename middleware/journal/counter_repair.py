"""Recounts a job whose counters differ from its rows. That would be a bug; the repair lets its items go on."""

import logging
from collections.abc import Iterable

from callboard.sql.pool import Conn, transaction
from callboard.sql.reads import queries
from callboard.sql.writes.jobs import lock_jobs, recount_jobs

log = logging.getLogger("callboard.journal")


def repair_counters(conn: Conn, jobs: Iterable[int]) -> None:
    """Recount these jobs in one transaction; log each counter that drifted as critical."""
    numbers = sorted(set(jobs))
    with transaction(conn):
        lock_jobs(conn, numbers)
        for number in numbers:
            for found in queries.run(conn, queries.verify(number))["drift"]:
                log.critical(
                    "job %d: %s was %d, and the rows give %d; it is repaired. Please report this",
                    number, found["check"], found["stored"], found["counted"],
                )  # fmt: skip
        recount_jobs(conn, numbers)
