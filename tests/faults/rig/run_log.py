"""The log of what the actors really did: a table on a server that no test breaks, one row a run, committed at once."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

import callboard
from callboard.sql.pool import Conn

#: The variable with the URL of the log's database.
RUN_LOG_URL = "CALLBOARD_TEST_RUN_LOG"
_local = threading.local()

TABLE = """CREATE TABLE runs (
    id bigserial PRIMARY KEY, job bigint, item int, attempt int, pid int,
    began timestamptz NOT NULL DEFAULT clock_timestamp(), ended timestamptz
)"""


@contextmanager
def logged_run(*items: int) -> Iterator[None]:
    """An actor's body: its run is logged as it begins, and as it ends in whatever way; of a batch one run an item."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ[RUN_LOG_URL], autocommit=True)
    now = callboard.current()
    rows = _local.connection.execute(
        "INSERT INTO runs (job, item, attempt, pid) SELECT %s, unnest(%s::int[]), %s, %s RETURNING id",
        (now.job, list(items or [now.item]), now.attempt, os.getpid()),
    ).fetchall()
    try:
        yield
    finally:
        _local.connection.execute(
            "UPDATE runs SET ended = clock_timestamp() WHERE id = ANY (%s)", ([row[0] for row in rows],)
        )


class RunLog:
    """The table as a test reads it. `conn` is for queries of the test's own."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    def run_counts(self, job: int) -> Counter[int]:
        """How many runs of each item of a job began."""
        rows = self.conn.execute("SELECT item, count(*) FROM runs WHERE job = %s GROUP BY item", (job,))
        return Counter({row[0]: row[1] for row in rows})

    def attempt_counts(self, job: int) -> Counter[tuple[int, int]]:
        """How many runs of each (item, attempt) of a job began."""
        rows = self.conn.execute(
            "SELECT item, attempt, count(*) FROM runs WHERE job = %s GROUP BY item, attempt", (job,)
        )
        return Counter({(row[0], row[1]): row[2] for row in rows})

    def repeated(self, job: int) -> int:
        """How many runs were of an attempt that had begun before."""
        return sum(count - 1 for count in self.attempt_counts(job).values())

    def unfinished(self, job: int | None = None) -> int:
        """How many runs began and have not ended; runs of a killed process never end."""
        row = self.conn.execute(
            "SELECT count(*) FROM runs WHERE ended IS NULL AND (%(job)s::bigint IS NULL OR job = %(job)s)",
            {"job": job},
        ).fetchone()
        return int(row[0]) if row else 0
