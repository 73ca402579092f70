"""How finished jobs leave: marked first, which makes them invisible, and then cleared away, a chunk a transaction.

Rows of others are never locked, and those of a leaving job nobody looks at: so nothing is blocked. Whoever clears may
end at any time, be killed or have company: what is left is cleared by the next.
"""

from collections.abc import Iterable, Iterator

from callboard.sql.pool import Conn
from callboard.sql.statements import statement

#: Items deleted in one transaction.
CHUNK_ITEMS = 10_000
#: Jobs marked, and workers forgotten, by one statement.
BATCH_ROWS = 1_000
#: Seconds for which workers are told of jobs that left with messages of theirs in RabbitMQ.
TOMBSTONE_SECONDS = 366 * 86_400.0


def mark_deleted(conn: Conn, jobs: Iterable[int]) -> list[int]:
    """Finished jobs leave; returns them with their stages, but none that is not over, or leaving already."""
    return [row[0] for row in conn.execute(statement("mark_deleted"), (list(jobs),))]


def mark_expired(conn: Conn, keep: float | None) -> list[int]:
    """Finished jobs whose time is over leave, `MANY` at most; returns them. `keep`: seconds for which those are kept
    that don't say so themselves (None: for ever).
    """
    with conn.transaction():
        due = [row[0] for row in conn.execute(statement("expired_jobs"), {"keep": keep, "limit": BATCH_ROWS})]
        return mark_deleted(conn, due) if due else []


def deleted_jobs(conn: Conn) -> list[int]:
    """The jobs that are leaving."""
    return [row[0] for row in conn.execute(statement("deleted_jobs"))]


def delete_rows(conn: Conn, job: int) -> Iterator[int]:
    """Delete the rows of a leaving job; gives, after each transaction, how many items went. Not to be called in one."""
    while (reach := conn.execute(statement("deletion_progress"), (job,)).fetchone()) is not None:
        cleared, total = reach
        if cleared < total:
            yield _chunk(conn, job, cleared, min(cleared + CHUNK_ITEMS, total))
        else:
            yield _rest(conn, job)


def delete_old_rows(conn: Conn, keep: float | None) -> None:
    """Drop what else would gather for ever: workers that ended `keep` seconds ago (None: none), and old farewells."""
    conn.execute(statement("delete_old_workers"), {"keep": keep, "limit": BATCH_ROWS})
    conn.execute(statement("delete_old_tombstones"), {"after": TOMBSTONE_SECONDS})


def _chunk(conn: Conn, job: int, low: int, high: int) -> int:
    stretch = {"job": job, "low": low, "high": high}
    with conn.transaction():
        count = conn.execute(statement("delete_items"), stretch).rowcount
        conn.execute(statement("delete_item_rows"), stretch)
        conn.execute(statement("save_deletion_progress"), {"job": job, "high": high})
    return count


def _rest(conn: Conn, job: int) -> int:
    """The job's own rows, unless items were born meanwhile."""
    with conn.transaction():
        locked = conn.execute(statement("lock_deleted_job"), (job,)).fetchone()
        if locked is not None and locked[0]:
            conn.execute(statement("delete_job_rows"), {"job": job})
    return 0
