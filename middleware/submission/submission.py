"""A bulk submission: items become rows in chunks, from where the submission stands."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.message.failure import clean
from callboard.middleware.submission import item_encoding
from callboard.middleware.submission.item_encoding import ItemKey
from callboard.sql import timings
from callboard.sql.limits import moment
from callboard.sql.pool import Conn
from callboard.sql.writes import submission, sweep

#: Items in one transaction.
CHUNK_ITEMS = 5_000
#: Items after which tables may be others to PostgreSQL's planner.
ANALYZE_AFTER_ITEMS = CHUNK_ITEMS // 5

log = logging.getLogger("callboard.submit")


class SubmittedElsewhere(RuntimeError):
    """Another submission with the same key is at work on this job."""


@dataclass(slots=True)
class Submission:
    """A submission in progress: `consumed` inputs of `job` are stored; `open_`: the job still takes items.

    `write` runs a statement in a transaction, `publish` publishes the job's first items from this process.
    """

    write: Callable[[Callable[[Conn], Any]], Any]
    publish: Callable[[int], None]
    job: int
    key: str | None
    item_key: ItemKey
    consumed: int
    open_: bool

    def store_all(self, items: Iterable[Any]) -> None:
        """Store the items that are not stored yet, chunk by chunk, then seal the job; raises what `items` raises."""
        try:
            source = iter(items)
            if self.open_:
                next(islice(source, self.consumed, self.consumed), None)
            while self.open_ and (chunk := list(islice(source, CHUNK_ITEMS))):
                self._store(chunk)
            self._seal()
        except BaseException as error:
            self._break_off(error)
            raise

    def _store(self, chunk: Sequence[Any]) -> None:
        """Store a chunk, all of it or nothing; the job starts with its first."""
        rows = [item_encoding.row(self.consumed + n, item, self.item_key) for n, item in enumerate(chunk)]
        how, number = self.write(
            lambda conn: submission.store_chunk(
                conn, self.job, self.consumed, rows, keyed=self.item_key is not None
            )
        )
        if how != "stored":
            raise SubmittedElsewhere(
                f"job {self.job} was {how} at input {number}, and this submission had {self.consumed}"
            )
        first = self.consumed == 0
        self.consumed += len(chunk)
        if len(chunk) >= ANALYZE_AFTER_ITEMS:
            self._analyze()
        if first:
            self.publish(self.job)

    def _analyze(self) -> None:
        """Renew the planner's statistics before workers query the new rows; the sweep does so too, a little later."""
        try:
            self.write(sweep.analyze_grown)
        except (psycopg.Error, PoolTimeout):
            log.debug("the planner's statistics were not renewed", exc_info=True)

    def _seal(self) -> None:
        if not self.open_:
            return
        sealed = self.write(lambda conn: submission.seal_job(conn, self.job))
        if not sealed and self.key is None:  # with a key another may have sealed it, with all of its items
            raise SubmittedElsewhere(f"job {self.job} was stopped before its submission was done")
        self.publish(self.job)

    def _break_off(self, error: BaseException) -> None:
        """Stop a job that no later submission can continue; a job with a key stays open for one."""
        if self.key is not None or not self.open_:
            return
        reason = clean(f"its submission broke off at input {self.consumed}: {type(error).__name__}: {error}")
        try:
            self.write(lambda conn: submission.break_job(conn, self.job, reason))
        except Exception:
            log.exception("job %d can't be marked as broken off", self.job)


def start(delay: timedelta | str | None, at: datetime | str | None) -> datetime | timedelta | str | None:
    """When a job starts; raises ValueError when that is said twice, or makes no sense."""
    if delay is not None and at is not None:
        raise ValueError("delay and at say the same: give one of them")
    return at if delay is None else moment("delay", delay)


def check_chunk(chunk: int) -> None:
    """Raise ValueError for what can't be how many items a message carries."""
    if type(chunk) is not int or not 1 <= chunk <= timings.PUBLISH_WINDOW_ITEMS:
        raise ValueError(
            f"chunk must be a whole number from 1 to {timings.PUBLISH_WINDOW_ITEMS}, not {chunk!r}"
        )
