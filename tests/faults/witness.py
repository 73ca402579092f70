"""Reads a job again and again while faults happen: in every reading the parts must add up, and nothing may go back."""

import threading
from typing import Any

import psycopg

from callboard.sql import reads
from callboard.sql.pool import connect
from callboard.sql.states import ITEM_STATES

FINAL = ("succeeded", "failed", "skipped")


class Witness:
    """A thread with a connection of its own; a database that is away is simply asked again."""

    def __init__(self, url: str, job: int, *, reopened: bool = False) -> None:
        self.url = url
        self.job = job
        self.wrong: list[dict[str, Any]] = []
        self.readings = 0
        self._reopened = reopened
        self._last = dict.fromkeys(FINAL, 0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with connect(self.url) as conn:
                    while not self._stopping.wait(0.05):
                        self._read(reads.run(conn, reads.job(self.job)))
            except psycopg.Error:
                self._stopping.wait(0.2)

    def _read(self, found: dict[str, Any] | None) -> None:
        if found is None:
            return
        self.readings += 1
        parts = [found[state] for state in ITEM_STATES]
        back = any(found[state] < self._last[state] for state in FINAL) and not self._reopened
        if sum(parts) != found["total"] or min(parts) < 0 or back:
            self.wrong.append({**found, "before": self._last})
        self._last = {state: found[state] for state in FINAL}
