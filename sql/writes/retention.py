"""Deletion of finished jobs: a job is marked, which hides it, and then its rows are deleted, a chunk in a transaction.

Nobody reads the rows of a deleted job, and no others are locked, so nothing is blocked. A process that deletes rows may
be killed, and others may do the same at the same time: the next one goes on.
"""

from collections.abc import Iterable, Iterator

from callboard.sql.pool import Conn, transaction
from callboard.sql.statements import statement

#: Items deleted in one transaction.
CHUNK_ITEMS = 10_000
#: Jobs marked, and workers forgotten, by one statement.
BATCH_ROWS = 1_000
#: Seconds for which workers are told of jobs that left with messages of theirs in RabbitMQ.
TOMBSTONE_SECONDS = 366 * 86_400.0


def mark_deleted(conn: Conn, jobs: Iterable[int]) -> list[int]:
    """Mark finished jobs, with their stages, as deleted; return the ids of those that were not, and were over."""
    return [row[0] for row in conn.execute(statement("mark_deleted"), (list(jobs),))]


def mark_expired(conn: Conn, keep: float | None) -> list[int]:
    """Mark finished jobs whose time is over as deleted, `BATCH_ROWS` at most; return their ids. `keep`: seconds that
    jobs without a limit of their own are kept (None: for ever).
    """
    with transaction(conn):
        due = [row[0] for row in conn.execute(statement("expired_jobs"), {"keep": keep, "limit": BATCH_ROWS})]
        return mark_deleted(conn, due) if due else []


def deleted_jobs(conn: Conn) -> list[int]:
    """Return the ids of deleted jobs that have rows yet."""
    return [row[0] for row in conn.execute(statement("deleted_jobs"))]


def delete_rows(conn: Conn, job: int) -> Iterator[int]:
    """Delete the rows of a deleted job, in transactions of its own; yield the number of items after each."""
    while (reach := conn.execute(statement("deletion_progress"), (job,)).fetchone()) is not None:
        cleared, total = reach
        if cleared < total:
            yield _chunk(conn, job, cleared, min(cleared + CHUNK_ITEMS, total))
        else:
            yield _rest(conn, job)


def delete_old_rows(conn: Conn, keep: float | None) -> None:
    """Delete workers that ended `keep` seconds ago (None: none), and what is known of jobs deleted a year ago."""
    conn.execute(statement("delete_old_workers"), {"keep": keep, "limit": BATCH_ROWS})
    conn.execute(statement("delete_old_tombstones"), {"after": TOMBSTONE_SECONDS})


def _chunk(conn: Conn, job: int, low: int, high: int) -> int:
    stretch = {"job": job, "low": low, "high": high}
    with transaction(conn):
        count = conn.execute(statement("delete_items"), stretch).rowcount
        conn.execute(statement("delete_item_rows"), stretch)
        conn.execute(statement("save_deletion_progress"), {"job": job, "high": high})
    return count


def _rest(conn: Conn, job: int) -> int:
    """Delete the job's own rows, unless it got children meanwhile."""
    with transaction(conn):
        locked = conn.execute(statement("lock_deleted_job"), (job,)).fetchone()
        if locked is not None and locked[0]:
            conn.execute(statement("delete_job_rows"), {"job": job})
    return 0
