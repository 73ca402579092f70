"""Writes the rows of `running`: the steps and progress of slow attempts, and where they hang."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.journal.hang_detector import HangDetector
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import Process
from callboard.sql.rows import Running
from callboard.sql.writes import outcomes

log = logging.getLogger("callboard.journal")
_log_blind = OutageLog(log, "hanging attempts can't be sampled: %s")

#: Seconds after which an attempt gets a row in `running`.
SLOW_SECONDS = 0.25
#: Seconds between two looks at the attempts in flight.
LOOK_SECONDS = 0.10
#: The most jobs to remember as started. Then the memory is cleared, and the jobs are reported again, which is
#: idempotent.
STARTED_JOBS = 10_000


@dataclass(slots=True)
class RunningRows:
    """Reports slow attempts, and the jobs that started in this process. Only the journal's thread uses it."""

    process: Process
    outage: OutageLog
    hangs: HangDetector
    _looked: float = 0.0
    _started_jobs: set[int] = field(default_factory=set)

    def report(self, in_flight: Callable[[], Sequence[Attempt]]) -> None:
        """Write rows of slow attempts, their steps and progress, and mark the jobs that started; at most every
        `LOOK_SECONDS`. Errors of the database are logged; the next call tries again.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        attempts = [a for a in in_flight() if not a.ended]
        slow = [a for a in attempts if (now - a.started > SLOW_SECONDS and not a.reported) or a.unreported]
        steps = {a.job: None for a in attempts if a.job not in self._started_jobs} | {
            a.job: a.step for a in slow if a.step != a.step_reported
        }
        hung = self._sample(attempts, now)
        if slow or steps or hung:
            starts = {a.job: a.started for a in sorted(attempts, key=lambda a: a.started, reverse=True)}
            self._write(slow, {job: (step, now - starts[job]) for job, step in steps.items()}, hung, now)

    def _sample(self, attempts: Sequence[Attempt], now: float) -> list[Running]:
        try:
            return self.hangs.look(attempts, now)
        except Exception as error:  # noqa: BLE001 — the search for hanging attempts must not stop the journal
            _log_blind(error)
            return []

    def _write(
        self, slow: Sequence[Attempt], seen: dict[int, tuple[str | None, float]], hung: Sequence[Running], now: float
    ) -> None:
        rows = [Running(*a.key, a.number, now - a.started, a.step, a.progress) for a in slow]
        for attempt in slow:
            attempt.running = True  # before the row exists: the end of the attempt must delete it
        reported, locked = set[tuple[int, int]](), set[int]()
        try:
            with self.process.pool.connection() as conn:
                if seen:  # before its items: a job starts no later than they
                    locked = outcomes.touch_jobs(conn, seen)
                if rows or hung:
                    reported = outcomes.report_running(conn, self.process.worker, [*rows, *hung])
        except (psycopg.Error, PoolTimeout) as error:
            self.outage(error)
            return
        self.outage.over()
        if len(self._started_jobs) + len(seen) > STARTED_JOBS:
            self._started_jobs.clear()
        self._started_jobs.update(seen.keys() - locked)
        written = [(a, row) for a, row in zip(slow, rows, strict=True) if a.key in reported and a.job not in locked]
        for attempt, row in written:  # the next call tries the others again
            if (row.step, row.progress) != (attempt.step_reported, attempt.progress_reported):
                attempt.moved = now
            attempt.reported, attempt.step_reported, attempt.progress_reported = True, row.step, row.progress
