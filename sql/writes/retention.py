"""Deletion of finished jobs: a job is marked, which hides it; then its rows are deleted, one chunk per transaction.

No process reads the rows of a deleted job, and no other rows are locked, so nothing is blocked. A process that deletes
rows may be killed, and several may do it at the same time: the next one goes on.
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

#: Seconds until a job that could not be deleted is tried again, and seconds for a job that was locked.
SET_ASIDE_SECONDS, LOCKED_PAUSE_SECONDS = 3600.0, 60.0
#: Items deleted in one transaction.
CHUNK_ITEMS = 10_000
#: The most jobs that one statement marks, and workers that one statement deletes.
BATCH_ROWS = 1_000
#: The most rows of `totals` that one statement merges.
MERGED_ROWS = 50_000
#: Seconds for which workers can read that a job is deleted, because RabbitMQ may still have messages of it.
TOMBSTONE_SECONDS = 366 * 86_400.0


def mark_deleted(conn: Conn, jobs: Iterable[int]) -> list[int]:
    """Mark finished jobs, with their stages, as deleted; return the ids of those that this call has marked."""
    return fetch_ids(conn, "mark_deleted", jobs=list(jobs))


def mark_expired(conn: Conn, keep: float | None) -> list[int]:
    """Mark expired finished jobs as deleted, at most `BATCH_ROWS`; return their ids. `keep`: seconds for which jobs
    without their own `keep` are kept (None: for ever).

    Raises UserFunctionWaits or DATA_ERRORS when a user's trigger refuses all of them.
    """
    with transaction(conn):
        due = fetch_ids(conn, "expired_jobs", keep=keep, limit=BATCH_ROWS)
        marked = list[int]()

        def mark(jobs: list[int]) -> list[int]:
            with transaction(conn):  # a savepoint, so that the other jobs stay locked
                marked.extend(mark_deleted(conn, jobs))
            return []

        refused = write_each(mark, due) if due else []
        if refused and not marked:
            mark(refused[:1])  # raises why
        return marked


def deleted_jobs(conn: Conn, *, aside: bool = False) -> list[int]:
    """Return the ids of deleted jobs that still have rows; `aside`: including those that were set aside."""
    return fetch_ids(conn, "deleted_jobs", aside=aside)


def with_stages(conn: Conn, jobs: Sequence[int]) -> dict[int, bool]:
    """Return these jobs and their stages, in order: {id: whether it is no stage}."""
    return dict(execute(conn, "with_stages", jobs=list(jobs)).fetchall())


def delete_rows(conn: Conn, job: int, lock_wait: float | None = None) -> Iterator[int]:
    """Delete the rows of a deleted job, in several transactions; yield the number of deleted items after each.

    A job that can't be deleted is set aside for an hour, with the reason: for example, a row of a user's table refers
    to it, or a trigger prevents the deletion. If another transaction has locked a row of it, or a row that refers to
    it, for more than `lock_wait` seconds (None: `LOCK_WAIT_SECONDS`), it is set aside for a minute.

    Raises TimeoutError, with the reason, if its own row is locked: then it can't be set aside, either.
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
            except psycopg.Error as error:  # a row refers to it, a user's trigger refuses, or a row is locked
                if not isinstance(error, (LockNotAvailable, *DATA_ERRORS)):
                    raise
                _set_aside(conn, job, error, lock_wait)
                return
            yield count
    except LockNotAvailable:
        raise TimeoutError(f"its row is locked, perhaps by {longest_lock(conn)}") from None


def jobs_set_aside(conn: Conn, jobs: Sequence[int]) -> dict[int, str]:
    """Return {id: reason} of those of these deleted jobs that are set aside."""
    return dict(execute(conn, "jobs_set_aside", jobs=list(jobs)).fetchall())


def delete_old_rows(conn: Conn, keep: float | None) -> None:
    """Delete workers that ended `keep` seconds ago (None: none), tombstones of jobs deleted a year ago, and invalid
    tokens; merge the totals of ended jobs.
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
    """Delete the job's own rows, unless it got more items meanwhile."""
    with transaction(conn, lock_wait):
        cleared = fetch_value(conn, "lock_deleted_job", job=job)
        if cleared and not execute(conn, "delete_job_rows", job=job).rowcount:
            raise _kept("jobs")
    return 0


def _kept(table: str) -> UserFunctionFailed:
    """Return the error of a deletion that left rows: PostgreSQL reports none."""
    return UserFunctionFailed(f"a trigger keeps rows of callboard.{table}, as one that returns NULL or NEW does")


def _set_aside(conn: Conn, job: int, error: psycopg.Error, lock_wait: float) -> None:
    """Set a job aside that can't be deleted now. Raises LockNotAvailable if its own row is locked."""
    pause, why, advice = SET_ASIDE_SECONDS, str(error), ""
    if isinstance(error, psycopg.IntegrityError):
        advice = "; declare the foreign key ON DELETE CASCADE, or delete those rows"
    if isinstance(error, LockNotAvailable):
        pause = LOCKED_PAUSE_SECONDS
        if not isinstance(error, UserFunctionWaits):
            why = f"a row that refers to it, or one of its own, is locked, perhaps by {longest_lock(conn)}"
    reason = f"it can't be deleted: {why}{advice}"
    execute(conn, "set_aside", job=job, reason=reason, pause=pause, lock_wait=lock_wait)
