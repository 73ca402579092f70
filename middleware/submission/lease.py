"""Who submits says so while it does: a submission whose process falls silent has broken off."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.writes import submission

log = logging.getLogger("callboard.submit")

#: Seconds between two tries while the database is away.
PAUSE = 2.0


@dataclass(slots=True)
class SubmissionLease:
    """The jobs that this process is submitting. A thread of its own speaks for them, so that a source which takes its
    time, or blocks, is not taken for a process that died. `write` runs a write statement.
    """

    write: Callable[[Callable[[Conn], None]], Any]
    _jobs: list[int] = field(default_factory=list)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    @contextmanager
    def held(self, job: int) -> Iterator[None]:
        """The block submits this job, and began to just now."""
        with self._wake:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="callboard-submitting", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._wake:
                self._jobs.remove(job)

    def _run(self) -> None:
        pause = timings.SUBMISSION_LEASE_SECONDS / 3
        while True:
            with self._wake:
                self._wake.wait(pause)
                jobs = set(self._jobs)
                if not jobs:
                    self._thread = None
                    return
            pause = self._renew(jobs)

    def _renew(self, jobs: set[int]) -> float:
        """Speak for these jobs; the seconds until it is to be done again."""
        try:
            self.write(lambda conn: submission.keep_submitting(conn, jobs))
        except (psycopg.Error, PoolTimeout) as error:
            log.debug("the database doesn't hear that a submission goes on: %s", error)
            return PAUSE
        except Exception:
            log.exception("what says that a submission goes on met an error it doesn't know; it goes on")
            return PAUSE
        return timings.SUBMISSION_LEASE_SECONDS / 3
