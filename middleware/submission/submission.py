"""Stores the items of a job chunk by chunk, and continues an earlier submission that broke off."""

import logging
import math
import os
import time
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import reduce

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.message.failure import clean
from callboard.middleware.submission import item_encoding
from callboard.middleware.submission.actor_lookup import Write
from callboard.middleware.submission.item_encoding import Row
from callboard.middleware.submission.lease import SubmissionLease
from callboard.sql import settings, timings
from callboard.sql.limits import parse_time
from callboard.sql.pool import Conn
from callboard.sql.rows import SubmittedJob
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import stages, submission, sweep
from callboard.sql.writes.submission import KeyInUse

#: The most items, and bytes of arguments, that one transaction stores. Larger ones would hold the job's lock for too
#: long, and all outcomes of its items wait for that lock.
CHUNK_ITEMS, CHUNK_BYTES = 10_000, 2**22
#: A chunk with so many items is stored in a thread, and followed by new statistics for PostgreSQL's planner.
LARGE_CHUNK_ITEMS = 1_000
#: While a thread stores the last chunk, the reading pauses after so many items for so many seconds. The storing thread
#: needs the GIL only briefly, between PostgreSQL's answers, and would wait 5 ms each time. These values measured
#: fastest.
PAUSE_ITEMS, PAUSE_SECONDS = 256, 0.0001

#: Why a job takes no more items of a submission, by the result of `store_chunk`.
REFUSED = {
    "elsewhere": "is submitted by another process or thread",
    "sealed": "takes no more items",
    "stopped": "was stopped",
    "deleted": "was deleted",
}

log = logging.getLogger("callboard.submit")


class SubmittedElsewhere(RuntimeError):
    """Another submission holds the job with this key, or the job was stopped while it was submitted."""


def submitting(actor: str, queue: str) -> AbstractContextManager[dict[str, str] | None]:
    """Return a context manager that opens an OpenTelemetry span, if that is on, and yields the trace context to store
    with the job, else None.
    """
    if not settings.OPENTELEMETRY.get():
        return nullcontext()
    from callboard.middleware import spans  # noqa: PLC0415 — imported only where it is on

    return spans.submitting(actor, queue)


def store_rows(
    rows: Iterable[Row], start: int, store: Callable[[int, list[Row]], None], *, chunk_seconds: float = math.inf,
    reads_on: bool = False,
) -> None:  # fmt: skip
    """Store encoded items in chunks by `store(start, rows)`, where `start` is the number of a chunk's first item. A
    chunk ends after 10,000 items, 4 MiB, or `chunk_seconds`. `reads_on`: the next chunk is read while a thread stores a
    large one.

    Raises what `rows` and `store` raise. If both fail, raises the error of `store`, which concerns earlier items.
    """
    storing: Future[None] = Future()  # the last chunk that was given to the thread
    storing.set_result(None)

    def pause() -> None:
        if not storing.done():
            time.sleep(PAUSE_SECONDS)

    with ThreadPoolExecutor(1, "callboard-submission") as thread:
        try:
            for chunk in _chunks(rows, chunk_seconds, pause):
                storing.result()
                in_thread = reads_on and len(chunk) >= LARGE_CHUNK_ITEMS
                if in_thread:
                    try:
                        storing = thread.submit(copy_context().run, store, start, chunk)
                    except RuntimeError:  # no pool takes work when Python exits
                        in_thread = False
                if not in_thread:
                    store(start, chunk)
                start += len(chunk)
        finally:
            storing.result()


def _chunks(rows: Iterable[Row], seconds: float, pause: Callable[[], None]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    size, due, timed = 0, time.monotonic() + seconds, seconds < math.inf
    for row in rows:
        chunk.append(row)
        size += len(row[0])
        if len(chunk) == CHUNK_ITEMS or size >= CHUNK_BYTES or (timed and time.monotonic() >= due):
            yield chunk
            chunk, size, due = [], 0, time.monotonic() + seconds
        elif not len(chunk) % PAUSE_ITEMS:
            pause()
    if chunk:
        yield chunk


@dataclass(slots=True)
class Submission:
    """A bulk submission of the job `made`, which was created, or found by its `key`. `write` runs a statement once.
    `publish_job` publishes the first items of a job from this process.

    `keyed`: the items have item keys. `open`: the job is not sealed at the end, but stays open for more items. With a
    `key`, the items that are already stored must come again unchanged, so each is encoded and their digest compared.
    """

    write: Write
    lease: SubmissionLease
    publish_job: Callable[[int], None]
    made: SubmittedJob
    key: str | None
    keyed: bool = False
    open: bool = False
    _consumed: int = field(init=False)  # inputs that are stored
    _digest: bytes = field(init=False)  # of these inputs, if there is a key
    _looked: int = 0  # inputs that were stored when the planner's statistics were last renewed

    def __post_init__(self) -> None:
        self._consumed, self._digest = self.made.consumed, self.made.digest

    def store(self, rows: Iterable[Row]) -> bool:
        """Store the encoded items that are not stored yet, then seal the job; return True. For a job that takes no more
        items, compare the items with the stored ones and return False.

        Raises BadItem, KeyInUse, SubmittedElsewhere, psycopg.Error, PoolTimeout, and what `rows` raises.
        """
        if self.made.sealed or self.made.state in JOB_FINAL:
            if next(self._new_rows(rows), None) is not None and self.made.sealed:
                raise KeyInUse(self.key, self.made.job, f"{self._consumed:,} items, and these are more")
            return False
        if self.made.open:
            return False
        process = os.getpid()
        try:
            with self.lease.held(self.made.job):
                store_rows(self._new_rows(rows), self._consumed, self._store, reads_on=True)
                self._seal()
        except BaseException as error:
            if os.getpid() == process:  # a child that its source forked leaves it, and the parent goes on
                self._break_off(error)
            raise
        return True

    def _new_rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Return the items that are not stored yet. Raises KeyInUse if the stored ones differ."""
        return iter(rows) if self.key is None else self._compared(rows)

    def _compared(self, rows: Iterable[Row]) -> Iterator[Row]:
        count, consumed, digest = 0, self._consumed, b""
        for row in rows:
            count += 1
            if count > consumed:
                yield row
                continue
            digest = item_encoding.add_to_digest(digest, row)
            if count == consumed and digest != self.made.digest:
                raise KeyInUse(self.key, self.made.job, f"other items than the first {consumed:,} of these")
        if count < consumed:
            raise KeyInUse(self.key, self.made.job, f"{consumed:,} items, and these are {count:,}")

    def _store(self, start: int, rows: Sequence[Row]) -> None:
        """Store a chunk in one transaction; the job starts with its first chunk."""
        digest = self._digest if self.key is None else reduce(item_encoding.add_to_digest, rows, self._digest)
        how, number = self.write(
            lambda conn: submission.store_chunk(conn, self.made.job, start, rows, keyed=self.keyed, digest=digest)
        )
        if how != "stored":
            raise SubmittedElsewhere(
                f"job {self.made.job} {REFUSED[how]}: it has {number:,} inputs, and this submission had read {start:,}"
                + ("" if self.key is None else "; submit the same again with its key to get the job, or to go on")
            )
        self._consumed, self._digest = start + len(rows), digest
        if len(rows) >= LARGE_CHUNK_ITEMS and self._consumed >= 2 * self._looked:
            self._looked = self._consumed
            self._analyze()
        if start == 0:
            self.publish_job(self.made.job)

    def _analyze(self) -> None:
        """Renew the planner's statistics before workers query the new rows; the sweep would do it a little later."""
        try:
            self.write(sweep.analyze_grown_tables)
        except (psycopg.Error, PoolTimeout):
            log.debug("the planner's statistics were not renewed", exc_info=True)

    def _seal(self) -> None:
        end = submission.open_job if self.open else submission.seal_job
        sealed = self.write(lambda conn: end(conn, self.made.job))
        if not sealed and self.key is None:  # with a key, another submission may have sealed it, complete
            raise SubmittedElsewhere(f"job {self.made.job} was stopped before its submission was done")
        self.publish_job(self.made.job)

    def _break_off(self, error: BaseException) -> None:
        """Stop a job that no later submission can continue; a job with a key can be continued."""
        reason = clean(f"its submission broke off at input {self._consumed}: {type(error).__name__}: {error}")

        def write(conn: Conn) -> None:
            refused = self.made.held and isinstance(error, item_encoding.BadItem)
            discarded = refused and submission.discard_job(conn, self.made.job)
            if not discarded and self.key is None:
                submission.fail_submission(conn, self.made.job, reason)
            elif not discarded and not isinstance(error, SubmittedElsewhere):  # the other submission goes on
                submission.release_submission(conn, self.made.job)
            stages.update_parents(conn)

        try:
            self.write(write)
        except psycopg.Error as failure:  # the sweep does it when the lease of the submission expires
            log.warning("job %d can't be marked as broken off now, and will be later: %s", self.made.job, failure)
        except Exception:
            log.exception("job %d can't be marked as broken off", self.made.job)


def start(delay: timedelta | str | None, at: datetime | str | None) -> datetime | timedelta | str | None:
    """Return when a job starts. Raises ValueError if both are given, or one is invalid."""
    if delay is not None and at is not None:
        raise ValueError("delay and at say the same: give one of them")
    return at if delay is None else parse_time("delay", delay)


def check_items(items: object) -> None:
    """Raise TypeError for a single item instead of an iterable, an async iterable, and a DataFrame of pandas."""
    if hasattr(items, "itertuples"):
        raise TypeError(
            "items must be an iterable of items, and a DataFrame is one of its columns' names: give its "
            "itertuples(index=False), or to_dict('records')"
        )
    if isinstance(items, AsyncIterable) and not isinstance(items, Iterable):
        raise TypeError(
            f"items must be an iterable, not {items!r:.100}: `await callboard.asubmit(…)` takes an async one"
        )
    if isinstance(items, str | bytes | bytearray | Mapping) or not isinstance(items, Iterable):
        raise TypeError(f"items must be an iterable of items, not {items!r:.100}: for one item, a list of one")


def check_chunk(chunk: int | None) -> None:
    """Raise ValueError unless a message can carry `chunk` items."""
    if chunk is not None and (type(chunk) is not int or not 1 <= chunk <= timings.PUBLISH_WINDOW_ITEMS):
        raise ValueError(
            f"chunk must be a whole number from 1 to {timings.PUBLISH_WINDOW_ITEMS}, or None, not {chunk!r}"
        )
