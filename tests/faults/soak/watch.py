"""Watches a soak: how far all jobs are, whether their parts add up, and what the workers' processes use."""

import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple, Self

import psycopg

from callboard.sql.pool import connect
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES
from tests.faults.rig.job_watcher import FINAL
from tests.faults.rig.scenario import Scenario
from tests.faults.soak.verdict import Sample
from tests.support.timer import stalled

PAUSE = 0.1
#: Seconds between two samples of what processes use.
SAMPLE = 2.0
PAGE = os.sysconf("SC_PAGE_SIZE")


class Moment(NamedTuple):
    """A time of the monotonic clock, and the seconds before it in which some process waited for a processor."""

    seconds: float
    stalled: float

    @classmethod
    def now(cls) -> Self:
        """This one."""
        return cls(time.monotonic(), stalled())


class Watch:
    """A thread with a connection of its own; a database that is away is simply asked again."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.open = 0
        self.progress: list[tuple[Moment, int]] = []  # when the number of final items grew, and to what
        self.wrong: list[dict[str, Any]] = []
        self.samples: dict[int, list[Sample]] = defaultdict(list)
        self.readings = 0
        self._last: dict[int, dict[str, int]] = {}
        self._sampled = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)

    def recovered(self, since: Moment) -> float:
        """Seconds from a moment to the next progress in which no process waited for a processor; what has not come yet
        counts as until now.
        """
        then = next((at for at, _ in self.progress if at.seconds > since.seconds), Moment.now())
        return max(then.seconds - since.seconds - (then.stalled - since.stalled), 0.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with connect(self.scenario.database_url) as conn:
                    while not self._stopping.wait(PAUSE):
                        self._read(queries.run(conn, queries.jobs(limit=100))[0])
                        self._sample(time.monotonic())
            except psycopg.Error:
                self._stopping.wait(PAUSE)

    def _read(self, jobs: list[dict[str, Any]]) -> None:
        self.readings += 1
        for job in jobs:
            before = self._last.get(job["id"], dict.fromkeys(FINAL, 0))
            parts = [job[state] for state in ITEM_STATES]
            if sum(parts) != job["total"] or min(parts) < 0 or any(job[s] < before[s] for s in FINAL):
                self.wrong.append({**job, "before": before})
            self._last[job["id"]] = {state: job[state] for state in FINAL}
        self.open = sum(job["total"] - sum(job[state] for state in FINAL) for job in jobs)
        final = sum(sum(counts.values()) for counts in self._last.values())
        if not self.progress or final > self.progress[-1][1]:
            self.progress.append((Moment.now(), final))

    def _sample(self, now: float) -> None:
        if now - self._sampled < SAMPLE:
            return
        self._sampled = now
        for worker in self.scenario.workers:
            if not worker.process.running():
                continue
            for pid in (worker.pid, *worker.children()):
                if (found := use(pid, now)) is not None:
                    self.samples[pid].append(found)


def use(pid: int, now: float) -> Sample | None:
    """What a process uses (Linux); None when it is gone."""
    place = Path(f"/proc/{pid}")
    try:
        resident = int((place / "statm").read_text().split()[1]) * PAGE
        threads, files = (len(list((place / name).iterdir())) for name in ("task", "fd"))
    except OSError:
        return None
    return Sample(pid, now, resident / 2**20, threads, files)
