"""Many who write at once, and what must hold meanwhile: what a recount finds is what the counters say, the states of a
job's items add up, and nothing deadlocks.
"""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES
from callboard.sql.writes import actions, retry, submission
from callboard.sql.writes.actions import NotPossible, Requester
from callboard.sql.writes.retry import Overtaken, RetrySelection
from tests.support.workers import wait_until

BY = Requester("python", "somebody")


class Crowd:
    """What is done to some jobs; each method of a subclass that is named to `at_once` is a step, done over and over."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.jobs: list[int] = []
        self.deadlocks: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.wrong: list[object] = []
        self._over = threading.Event()

    def at_once(self, names: Sequence[str], rounds: int) -> int:
        """So many rounds of each step, each in a thread of its own; how often was recounted meanwhile."""
        with ThreadPoolExecutor(len(names) + 1) as pool:
            recounts = pool.submit(self._recount)
            runs = [pool.submit(self._run, name, rounds, seed) for seed, name in enumerate(names)]
            try:
                for run in runs:
                    run.result(120)
            finally:
                self._over.set()
            return recounts.result(60)

    def say(self, conn: Conn, job: int, saying: str, given: Any = None) -> None:
        """Say something to a job; one that ended so often that nothing can be said to it is no fault."""
        self.done[saying] += 1
        try:
            if saying == "retry":
                retry.retry(conn, job, BY, given or RetrySelection())
            elif saying == "limit":
                actions.limit(conn, job, BY, given)
            elif saying == "seal":
                submission.seal_job(conn, job)
            else:
                getattr(actions, saying)(conn, job, BY)
        except (NotPossible, Overtaken, actions.NoSuchJob):
            self.done[f"{saying} refused"] += 1

    def state(self, conn: Conn, job: int) -> str:
        """What a job is."""
        found = queries.run(conn, queries.job(job))
        assert found is not None
        return str(found["state"])

    def _run(self, name: str, rounds: int, seed: int) -> None:
        """What a deadlock undid is done again, as the journal, the sweep and people do."""
        chance = random.Random(seed)
        with connect(self.url) as conn:
            left = rounds
            while left:
                try:
                    getattr(self, name)(conn, chance)
                    self.done[name] += 1
                    left -= 1
                except psycopg.errors.DeadlockDetected:
                    self.deadlocks[name] += 1

    def _recount(self) -> int:
        count = 0
        with connect(self.url) as conn:
            while not self._over.is_set():
                self.wrong += queries.run(conn, queries.verify())["drift"]
                for job in queries.run(conn, queries.jobs())[0]:
                    if sum(job[state] for state in ITEM_STATES) != job["total"]:
                        self.wrong.append(job)
                count += 1
        return count


def turn_around(conn: Conn, *tables: str) -> None:
    """Have rows lie in the reverse order of their keys, which shows a plan that reads a small table as it lies."""
    for table in tables:
        with conn.transaction():
            conn.execute(f"CREATE TEMPORARY TABLE turned ON COMMIT DROP AS SELECT * FROM callboard.{table}")
            conn.execute(f"DELETE FROM callboard.{table}")
            conn.execute(
                f"INSERT INTO callboard.{table} OVERRIDING SYSTEM VALUE SELECT * FROM turned ORDER BY 1 DESC, ctid DESC"
            )


def broken(conn: Conn) -> int:
    """The deadlocks that PostgreSQL broke in the database, those included that were seen to by what met with them.

    Each process writes its share when its connection is closed.
    """
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert wait_until(lambda: conn.execute(others).fetchone() == (0,), 60)
    row = conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])
