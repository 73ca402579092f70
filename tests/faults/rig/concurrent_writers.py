"""Many writers at once, and what must hold meanwhile: a recount finds the same as the counters, the states of a job's
items add up to its total, and nothing deadlocks.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES
from callboard.sql.writes import actions, retry_action, submission
from callboard.sql.writes.requests import NoSuchJob, NotPossible, Requester
from callboard.sql.writes.retry_action import JobChanged, RetrySelection
from tests.support.databases import stored_columns
from tests.support.workers import wait_until

#: Seconds between two recounts, each of which takes as much processor time as a step.
RECOUNT_SECONDS = 0.05
BY = Requester("python", "somebody")


class ConcurrentWriters:
    """Writes to some `jobs`. Methods of a subclass that `run` is given by name are steps, each done over and over.

    `done` counts steps and actions, `refused` the actions that the state of their job did not allow, `deadlocks` the
    steps that PostgreSQL broke off.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.jobs: list[int] = []
        self.deadlocks: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.recounts = 0
        self.wrong: list[object] = []
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self, steps: Sequence[str], rounds: int, *, actions: Sequence[str], recounts: int) -> None:
        """Do each step, in a thread of its own, for so many rounds and until each of these actions was possible once
        and the jobs were recounted so often.
        """

        def enough() -> bool:
            possible = all(self.done[action] > self.refused[action] for action in actions)
            return self._over.is_set() or (possible and self.recounts >= recounts)

        with ThreadPoolExecutor(len(steps) + 1) as pool:
            recounting = pool.submit(self._recount)
            runs = [pool.submit(self._repeat, *step, rounds, enough) for step in enumerate(steps)]
            try:
                for run in runs:
                    run.result(300)
            finally:
                self._over.set()
            recounting.result(300)

    def act(self, conn: Conn, job: int, action: str, given: Any = None) -> None:
        """Do an action to a job."""
        refused = 0
        try:
            if action == "retry":
                retry_action.retry(conn, job, BY, given or RetrySelection())
            elif action == "limit":
                actions.limit(conn, job, BY, given)
            elif action == "seal":
                submission.seal_job(conn, job)
            else:
                getattr(actions, action)(conn, job, BY)
        except (NotPossible, JobChanged, NoSuchJob):
            refused = 1
        with self._lock:
            self.done[action] += 1
            self.refused[action] += refused

    def state(self, conn: Conn, job: int) -> str:
        """The state of a job."""
        found = queries.run(conn, queries.job(job))
        assert found is not None
        return str(found["state"])

    def _repeat(self, seed: int, name: str, rounds: int, enough: Callable[[], bool]) -> None:
        """Do a step; one that a deadlock undid is done again, as the journal, the sweep and people do. So is one that
        had waited too long for another's lock, or that stood still in its transaction until the server ended that.
        """
        chance = random.Random(seed)
        while rounds > 0 or not enough():
            with connect(self.url) as conn:
                while not conn.closed and (rounds > 0 or not enough()):
                    count = Counter[str]()
                    try:
                        getattr(self, name)(conn, chance)
                        count = self.done
                        rounds -= 1
                    except psycopg.errors.DeadlockDetected:
                        count = self.deadlocks
                    except (psycopg.errors.LockNotAvailable, psycopg.errors.IdleInTransactionSessionTimeout):
                        pass
                    with self._lock:
                        count[name] += 1

    def _recount(self) -> None:
        with connect(self.url) as conn:
            while not self._over.wait(RECOUNT_SECONDS):
                self.wrong += queries.run(conn, queries.verify())["drift"]
                for job in queries.run(conn, queries.jobs())[0]:
                    if sum(job[state] for state in ITEM_STATES) != job["total"]:
                        self.wrong.append(job)
                self.recounts += 1


def reverse_rows(conn: Conn, *tables: str) -> None:
    """Store rows in the reverse order of their keys, which reveals a plan that reads a small table in stored order."""
    for table in tables:
        with conn.transaction():
            columns = stored_columns(conn, table)
            conn.execute(f"CREATE TEMPORARY TABLE reversed ON COMMIT DROP AS SELECT * FROM callboard.{table}")
            conn.execute(f"DELETE FROM callboard.{table}")
            conn.execute(
                f"INSERT INTO callboard.{table} ({columns}) OVERRIDING SYSTEM VALUE"
                f" SELECT {columns} FROM reversed ORDER BY 1 DESC, ctid DESC"
            )


def broken_deadlocks(conn: Conn) -> int:
    """The deadlocks that PostgreSQL broke in the database, also those after which a writer tried again.

    Each server process reports its share when its connection is closed.
    """
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert wait_until(lambda: conn.execute(others).fetchone() == (0,), 300)
    row = conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])
