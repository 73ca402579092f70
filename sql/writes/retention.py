"""Deletion of finished jobs: a job is marked, which hides it, and then its rows are deleted, a chunk in a transaction.

Nobody reads the rows of a deleted job, and no others are locked, so nothing is blocked. A process that deletes rows may
be killed, and others may do the same at the same time: the next one goes on.
"""

from collections.abc import Iterable, Iterator, Sequence

import psycopg
from psycopg.errors import LockNotAvailable

from callboard.sql import timings
from callboard.sql.errors import DATA_ERRORS, UserFunctionFailed, UserFunctionWaits
from callboard.sql.pool import Conn, transaction
from callboard.sql.statements import execute, fetch_ids, fetch_value
from callboard.sql.writes.jobs import write_each
from callboard.sql.writes.outcomes import longest_lock

#: Seconds until a job that could not be deleted is tried again; and one that was locked.
SET_ASIDE_SECONDS, LOCKED_PAUSE_SECONDS = 3600.0, 60.0
#: Items deleted in one transaction.
CHUNK_ITEMS = 10_000
#: Jobs marked, and workers forgotten, by one statement.
BATCH_ROWS = 1_000
#: Totals that are merged by one statement, of jobs that have ended meanwhile.
MERGED_ROWS = 50_000
#: Seconds for which workers read that a job is deleted: messages of it may still lie in RabbitMQ.
TOMBSTONE_SECONDS = 366 * 86_400.0


def mark_deleted(conn: Conn, jobs: Iterable[int]) -> list[int]:
    """Mark finished jobs, with their stages, as deleted; return the ids of those that were not, and were over."""
    return fetch_ids(conn, "mark_deleted", jobs=list(jobs))


def mark_expired(conn: Conn, keep: float | None) -> list[int]:
    """Mark finished jobs whose time is over as deleted, `BATCH_ROWS` at most; return their ids. `keep`: seconds that
    jobs without a limit of their own are kept (None: for ever).

    Raises UserFunctionWaits or DATA_ERRORS when there are only jobs that a trigger of the user's keeps from it.
    """
    with transaction(conn):
        due = fetch_ids(conn, "expired_jobs", keep=keep, limit=BATCH_ROWS)
        marked = list[int]()

        def mark(jobs: list[int]) -> list[int]:
            with transaction(conn):  # a savepoint: the others stay locked
                marked.extend(mark_deleted(conn, jobs))
            return []

        refused = write_each(mark, due) if due else []
        if refused and not marked:
            mark(refused[:1])  # raises why
        return marked


def deleted_jobs(conn: Conn, *, aside: bool = False) -> list[int]:
    """Return the ids of deleted jobs that have rows yet; `aside`: also of those set aside lately."""
    return fetch_ids(conn, "deleted_jobs", aside=aside)


def with_stages(conn: Conn, jobs: Sequence[int]) -> dict[int, bool]:
    """Return these jobs and their stages, in order: {id: whether it is no stage}."""
    return dict(execute(conn, "with_stages", jobs=list(jobs)).fetchall())


def delete_rows(conn: Conn, job: int, lock_wait: float | None = None) -> Iterator[int]:
    """Delete the rows of a deleted job, in transactions of its own; yield the number of items after each.

    A job that can't be deleted, since a row of a table of the user's refers to it, say, or a trigger keeps rows of it,
    is set aside, with the reason; it is tried again an hour later. When another transaction has locked a row of it, or
    one that refers to it, for longer than `lock_wait` seconds (None: `LOCK_WAIT_SECONDS`), it is set aside for a
    minute.

    Raises TimeoutError, with the reason, if its own row is locked: then it can't even be set aside.
    """
    if lock_wait is None:
        lock_wait = timings.LOCK_WAIT_SECONDS
    try:
        while (reach := execute(conn, "deletion_progress", job=job, lock_wait=lock_wait).fetchone()) is not None:
            cleared, total = reach
            try:
                if cleared < total:
                    count = _chunk(conn, job, cleared, min(cleared + CHUNK_ITEMS, total), lock_wait)
                else:
                    count = _rest(conn, job, lock_wait)
            except psycopg.Error as error:  # of a row that refers to it, a trigger of the user's, or a lock
                if not isinstance(error, (LockNotAvailable, *DATA_ERRORS)):
                    raise
                _set_aside(conn, job, error, lock_wait)
                return
            yield count
    except LockNotAvailable:
        raise TimeoutError(f"its row is locked, perhaps by {longest_lock(conn)}") from None


def jobs_set_aside(conn: Conn, jobs: Sequence[int]) -> dict[int, str]:
    """Return those of these deleted jobs that could not be deleted, each with the reason."""
    return dict(execute(conn, "jobs_set_aside", jobs=list(jobs)).fetchall())


def delete_old_rows(conn: Conn, keep: float | None) -> None:
    """Delete workers that ended `keep` seconds ago (None: none), what is known of jobs deleted a year ago, and tokens
    that let nobody in any more; merge the totals of jobs that are over.
    """
    execute(conn, "delete_old_workers", keep=keep, limit=BATCH_ROWS)
    execute(conn, "delete_old_tombstones", after=TOMBSTONE_SECONDS)
    execute(conn, "delete_ended_tokens", limit=BATCH_ROWS)
    execute(conn, "merge_totals", limit=MERGED_ROWS)


def _chunk(conn: Conn, job: int, low: int, high: int, lock_wait: float) -> int:
    with transaction(conn, lock_wait):
        ((count, there),) = execute(conn, "delete_items", job=job, low=low, high=high).fetchall()
        if count < there:
            raise _kept("items")
        execute(conn, "delete_item_rows", job=job, low=low, high=high)
        execute(conn, "save_deletion_progress", job=job, high=high)
    return int(count)


def _rest(conn: Conn, job: int, lock_wait: float) -> int:
    """Delete the job's own rows, unless it got children meanwhile."""
    with transaction(conn, lock_wait):
        cleared = fetch_value(conn, "lock_deleted_job", job=job)
        if cleared and not execute(conn, "delete_job_rows", job=job).rowcount:
            raise _kept("jobs")
    return 0


def _kept(table: str) -> UserFunctionFailed:
    """The error of a deletion that leaves rows which are there: PostgreSQL reports none."""
    return UserFunctionFailed(f"a trigger keeps rows of callboard.{table}, as one that returns NULL or NEW does")


def _set_aside(conn: Conn, job: int, error: psycopg.Error, lock_wait: float) -> None:
    """Have a job that can't be deleted tried again later. Raises LockNotAvailable if its own row is locked."""
    pause, why, advice = SET_ASIDE_SECONDS, str(error), ""
    if isinstance(error, psycopg.IntegrityError):
        advice = "; declare the foreign key ON DELETE CASCADE, or delete those rows"
    if isinstance(error, LockNotAvailable):
        pause = LOCKED_PAUSE_SECONDS
        if not isinstance(error, UserFunctionWaits):
            why = f"a row that refers to it, or one of its own, is locked, perhaps by {longest_lock(conn)}"
    reason = f"it can't be deleted: {why}{advice}"
    execute(conn, "set_aside", job=job, reason=reason, pause=pause, lock_wait=lock_wait)
