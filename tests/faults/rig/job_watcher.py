"""Reads jobs again and again while faults happen: in each reading the parts add up to the total, and no final count
goes back.
"""

import threading
from typing import Any

import psycopg

from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES

FINAL = ("succeeded", "failed", "skipped")


def connect_to_look(url: str) -> Conn:
    """Open a connection that asks the same again and again. Measured: to plan the question for a job takes ten times
    the processor time of its answer.
    """
    conn = connect(url)
    conn.execute("SET plan_cache_mode = force_generic_plan")
    return conn


class JobWatcher:
    """A thread with a connection of its own, which it opens again while the database is away. `job` is an id, or None
    for all jobs; counts may go back if it is `reopened`; `pause` is the seconds between two looks.
    """

    def __init__(self, url: str, job: int | None = None, *, reopened: bool = False, pause: float = 0.2) -> None:
        self.url = url
        self.job = job
        self.wrong: list[object] = []
        self.looks = self.readings = 0
        self._reopened = reopened
        self._pause = pause
        self._last: dict[int, dict[str, int]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job watcher", daemon=True)

    def __enter__(self) -> "JobWatcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(300)

    def _run(self) -> None:
        """Look at least once, however short the test is."""
        while True:
            try:
                with connect_to_look(self.url) as conn:
                    while True:
                        self._look(conn)
                        if self._stopping.wait(self._pause):
                            return
            except psycopg.Error:
                if self._stopping.wait(0.2):
                    return
            except Exception as error:  # noqa: BLE001 — a watcher that ends early would find nothing wrong
                self.wrong.append(error)
                return

    def _look(self, conn: Conn) -> None:
        if self.job is None:
            jobs = queries.run(conn, queries.jobs(limit=100))[0]
        else:
            jobs = [job for job in (queries.run(conn, queries.job(self.job)),) if job is not None]
        self.looks += 1
        for job in jobs:
            self._read(job)

    def _read(self, found: dict[str, Any]) -> None:
        self.readings += 1
        before = self._last.get(found["id"], dict.fromkeys(FINAL, 0))
        parts = [found[state] for state in ITEM_STATES]
        back = any(found[state] < before[state] for state in FINAL) and not self._reopened
        if sum(parts) != found["total"] or min(parts) < 0 or back:
            self.wrong.append({**found, "before": before})
        self._last[found["id"]] = {state: found[state] for state in FINAL}
