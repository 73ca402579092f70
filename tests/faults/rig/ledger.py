"""What the actors really did: a table on a server that no test breaks, one row a run, committed as it begins."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

import callboard
from callboard.sql.pool import Conn

VARIABLE = "CALLBOARD_TEST_LEDGER"
_local = threading.local()

TABLE = """CREATE TABLE runs (
    id bigserial PRIMARY KEY, job bigint, item int, attempt int, pid int,
    began timestamptz NOT NULL DEFAULT clock_timestamp(), ended timestamptz
)"""


@contextmanager
def run(*items: int) -> Iterator[None]:
    """An actor's body: the run is noted as it begins, and as it ends, whatever way; of a batch, one of each item."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ[VARIABLE], autocommit=True)
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


class Ledger:
    """The table as a test reads it."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    def runs(self, job: int) -> Counter[int]:
        """How often each item of a job was begun."""
        rows = self.conn.execute("SELECT item, count(*) FROM runs WHERE job = %s GROUP BY item", (job,))
        return Counter({row[0]: row[1] for row in rows})

    def attempts(self, job: int) -> Counter[tuple[int, int]]:
        """How often each attempt at each item of a job was begun."""
        rows = self.conn.execute(
            "SELECT item, attempt, count(*) FROM runs WHERE job = %s GROUP BY item, attempt", (job,)
        )
        return Counter({(row[0], row[1]): row[2] for row in rows})

    def twice(self, job: int) -> int:
        """How many runs were of an attempt that had been begun before."""
        return sum(count - 1 for count in self.attempts(job).values())

    def open(self, job: int | None = None) -> int:
        """How many runs have begun and not ended (for ever so, when their process was killed)."""
        row = self.conn.execute(
            "SELECT count(*) FROM runs WHERE ended IS NULL AND (%(job)s::bigint IS NULL OR job = %(job)s)",
            {"job": job},
        ).fetchone()
        return int(row[0]) if row else 0
