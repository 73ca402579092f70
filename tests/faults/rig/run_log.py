"""The log of what the actors really did: a file for each process, two lines a run, read into a table by the test.

A line is written at once, so it outlives a killed process; and no fault that a test makes reaches a file. Measured:
with rows in a database instead, the log took more than half of the processor time of an item that does nothing.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import callboard
from callboard.sql.pool import Conn

#: The variable with the folder of the files.
RUN_LOG = "CALLBOARD_TEST_RUN_LOG"
_numbers, _opening = count(), threading.Lock()

TABLE = """
CREATE TEMPORARY TABLE runs (
    id bigserial PRIMARY KEY, job bigint, item int, attempt int, pid int, began timestamptz, ended timestamptz,
    key text UNIQUE
);
CREATE TEMPORARY TABLE new_runs (
    job bigint, item int, attempt int, pid int, began timestamptz, ended timestamptz, key text
);
"""


@contextmanager
def logged_run(*items: int) -> Iterator[None]:
    """An actor's body: its run is logged as it begins, and as it ends in whatever way; of a batch one run an item."""
    now = callboard.current()
    keys = [log_begin(now.job, item, now.attempt) for item in items or [now.item]]
    try:
        yield
    finally:
        for key in keys:
            _write(f"\\N\t\\N\t\\N\t\\N\t\\N\t{_clock()}\t{key}\n")


def log_begin(job: int, item: int, attempt: int) -> str:
    """Log that a run begins; the key by which its end is logged."""
    key = f"{_file().stem}-{next(_numbers)}"
    _write(f"{job}\t{item}\t{attempt}\t{os.getpid()}\t{_clock()}\t\\N\t{key}\n")
    return key


def _opened() -> tuple[Path, int]:
    """This process's file: one, so that the end of a run always stands behind its beginning."""
    with _opening:
        return _open(os.getpid())


@cache
def _open(pid: int) -> tuple[Path, int]:
    path = Path(os.environ[RUN_LOG]) / f"{pid}-{time.monotonic_ns()}.runs"
    return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _file() -> Path:
    return _opened()[0]


def _write(line: str) -> None:
    os.write(_opened()[1], line.encode("ascii"))


def _clock() -> str:
    """The time, also in a process whose `time.time` a test has shifted; as PostgreSQL reads it."""
    moment = time.clock_gettime(time.CLOCK_REALTIME)
    seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))
    return f"{seconds}.{int(moment % 1 * 1_000_000):06}+00"


class RunLog:
    """The log as a test reads it: the files of `folder`, and the table `runs` that they are read into."""

    def __init__(self, conn: Conn, folder: Path) -> None:
        self.folder = folder
        self._conn = conn
        self._read: dict[Path, int] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        conn.execute(TABLE)

    @property
    def conn(self) -> Conn:
        """The connection to the table, which holds all that was logged until now."""
        with self._lock:
            lines = "".join(self._new_lines(path) for path in self.folder.glob("*.runs"))
            if lines:
                self._store(lines)
        return self._conn

    def _new_lines(self, path: Path) -> str:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read[path] = self._read.get(path, 0) + len(whole + newline)
        return (whole + newline).decode("ascii")

    def _store(self, lines: str) -> None:
        """Begins become rows, in their order; ends go to the rows of their keys."""
        with self._conn.transaction():
            with (
                self._conn.cursor() as cursor,
                cursor.copy("COPY new_runs (job, item, attempt, pid, began, ended, key) FROM STDIN") as copy,
            ):
                copy.write(lines)
            self._conn.execute(
                "INSERT INTO runs (job, item, attempt, pid, began, key)"
                " SELECT job, item, attempt, pid, began, key FROM new_runs WHERE began IS NOT NULL ORDER BY began"
            )
            self._conn.execute(
                "UPDATE runs SET ended = new_runs.ended FROM new_runs WHERE runs.key = new_runs.key"
                " AND new_runs.ended IS NOT NULL"
            )
            self._conn.execute("DELETE FROM new_runs")

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
            "SELECT count(*) FROM runs WHERE ended IS NULL AND (%(job)s::bigint IS NULL OR job = %(job)s)", {"job": job}
        ).fetchone()
        return int(row[0]) if row else 0
