"""Stores the items of a job chunk by chunk, from where an earlier submission of the job broke off."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.message.failure import clean
from callboard.middleware.process.process import Process
from callboard.middleware.submission import item_encoding
from callboard.middleware.submission.item_encoding import ItemKey, Row
from callboard.sql import timings
from callboard.sql.limits import parse_time
from callboard.sql.writes import submission, sweep

#: The most items that are stored in one transaction.
CHUNK_ITEMS = 5_000
#: A chunk with this many items is worth new statistics for PostgreSQL's planner.
ANALYZE_AFTER_ITEMS = CHUNK_ITEMS // 5

log = logging.getLogger("callboard.submit")


class SubmittedElsewhere(RuntimeError):
    """Another submission has the job with this key, or the job was stopped while it was submitted."""


def store_items(
    items: Iterable[Any],
    consumed: int,
    store: Callable[[int, list[Row]], None],
    *,
    item_key: ItemKey = None,
    chunk_seconds: float = math.inf,
) -> None:
    """Pass over the first `consumed` items, which are stored, and store the others by `store(start, rows)`, in chunks;
    `start` is the number of a chunk's first item. A chunk ends with 5,000 items, or when `chunk_seconds` are over.

    Raises BadItem, and what `items` and `store` raise.
    """
    source = iter(items)
    next(islice(source, consumed, consumed), None)
    for chunk in _chunks(source, chunk_seconds):
        store(consumed, [item_encoding.encode(consumed + n, item, item_key) for n, item in enumerate(chunk)])
        consumed += len(chunk)


def _chunks(source: Iterator[Any], seconds: float) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    due = time.monotonic() + seconds
    for item in source:
        chunk.append(item)
        if len(chunk) == CHUNK_ITEMS or time.monotonic() >= due:
            yield chunk
            chunk, due = [], time.monotonic() + seconds
    if chunk:
        yield chunk


@dataclass(slots=True)
class Submission:
    """A bulk submission in progress: `job` takes items, and `consumed` of them are stored. `publish_job` publishes the
    first items of a job from this process.
    """

    process: Process
    publish_job: Callable[[int], None]
    job: int
    key: str | None
    item_key: ItemKey
    consumed: int

    def store_all(self, items: Iterable[Any]) -> None:
        """Store the items that are not stored yet, then seal the job.

        Raises BadItem, SubmittedElsewhere, psycopg.Error, PoolTimeout, and what `items` raises.
        """
        try:
            store_items(items, self.consumed, self._store, item_key=self.item_key)
            self._seal()
        except BaseException as error:
            self._break_off(error)
            raise

    def _store(self, start: int, rows: Sequence[Row]) -> None:
        """Store a chunk, all of it or nothing; the job starts with its first chunk."""
        how, number = self.process.write(
            lambda conn: submission.store_chunk(conn, self.job, start, rows, keyed=self.item_key is not None)
        )
        if how != "stored":
            raise SubmittedElsewhere(
                f"job {self.job} was {how} at input {number}, and this submission had {start}"
            )
        self.consumed = start + len(rows)
        if len(rows) >= ANALYZE_AFTER_ITEMS:
            self._analyze()
        if start == 0:
            self.publish_job(self.job)

    def _analyze(self) -> None:
        """Renew the planner's statistics before workers query the new rows; the sweep does so too, a little later."""
        try:
            self.process.write(sweep.analyze_grown_tables)
        except (psycopg.Error, PoolTimeout):
            log.debug("the planner's statistics were not renewed", exc_info=True)

    def _seal(self) -> None:
        sealed = self.process.write(lambda conn: submission.seal_job(conn, self.job))
        if not sealed and self.key is None:  # with a key another may have sealed it, with all of its items
            raise SubmittedElsewhere(f"job {self.job} was stopped before its submission was done")
        self.publish_job(self.job)

    def _break_off(self, error: BaseException) -> None:
        """Stop a job that no later submission can continue; a job with a key stays open for one."""
        if self.key is not None:
            return
        reason = clean(f"its submission broke off at input {self.consumed}: {type(error).__name__}: {error}")
        try:
            self.process.write(lambda conn: submission.fail_submission(conn, self.job, reason))
        except Exception:
            log.exception("job %d can't be marked as broken off", self.job)


def start(delay: timedelta | str | None, at: datetime | str | None) -> datetime | timedelta | str | None:
    """Return when a job starts; raises ValueError if both are given, or one makes no sense."""
    if delay is not None and at is not None:
        raise ValueError("delay and at say the same: give one of them")
    return at if delay is None else parse_time("delay", delay)


def check_chunk(chunk: int) -> None:
    """Raise ValueError unless a message can carry so many items."""
    if type(chunk) is not int or not 1 <= chunk <= timings.PUBLISH_WINDOW_ITEMS:
        raise ValueError(
            f"chunk must be a whole number from 1 to {timings.PUBLISH_WINDOW_ITEMS}, not {chunk!r}"
        )
