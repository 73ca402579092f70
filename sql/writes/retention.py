"""How finished jobs leave: marked first, which makes them invisible, and then cleared away, a chunk a transaction.

Rows of others are never locked, and those of a leaving job nobody looks at: so nothing is blocked. Whoever clears may
end at any time, be killed or have company: what is left is cleared by the next.
"""

from collections.abc import Iterable, Iterator

from callboard.sql.pool import Conn
from callboard.sql.statements import statement

#: Items deleted in one transaction.
CHUNK = 10_000
#: Jobs marked, and workers forgotten, by one statement.
MANY = 1_000
#: Seconds for which workers are told of jobs that left with messages of theirs in RabbitMQ.
TOLD = 366 * 86_400.0


def mark(conn: Conn, jobs: Iterable[int]) -> list[int]:
    """Finished jobs leave; returns them with their stages, but none that is not over, or leaving already."""
    return [row[0] for row in conn.execute(statement("mark_leaving"), (list(jobs),))]


def mark_due(conn: Conn, keep: float | None) -> list[int]:
    """Finished jobs whose time is over leave, `MANY` at most; returns them. `keep`: seconds for which those are kept
    that don't say so themselves (None: for ever).
    """
    with conn.transaction():
        due = [row[0] for row in conn.execute(statement("due_jobs"), {"keep": keep, "limit": MANY})]
        return mark(conn, due) if due else []


def jobs(conn: Conn) -> list[int]:
    """The jobs that are leaving."""
    return [row[0] for row in conn.execute(statement("leaving_jobs"))]


def clear(conn: Conn, job: int) -> Iterator[int]:
    """Delete the rows of a leaving job; gives, after each transaction, how many items went. Not to be called in one."""
    while (reach := conn.execute(statement("leaving_reach"), (job,)).fetchone()) is not None:
        cleared, total = reach
        if cleared < total:
            yield _chunk(conn, job, cleared, min(cleared + CHUNK, total))
        else:
            yield _rest(conn, job)


def forget(conn: Conn, keep: float | None) -> None:
    """Drop what else would gather for ever: workers that ended `keep` seconds ago (None: none), and old farewells."""
    conn.execute(statement("forget_workers"), {"keep": keep, "limit": MANY})
    conn.execute(statement("forget_gone"), {"after": TOLD})


def _chunk(conn: Conn, job: int, low: int, high: int) -> int:
    stretch = {"job": job, "low": low, "high": high}
    with conn.transaction():
        count = conn.execute(statement("delete_items"), stretch).rowcount
        conn.execute(statement("delete_item_rows"), stretch)
        conn.execute(statement("note_cleared"), {"job": job, "high": high})
    return count


def _rest(conn: Conn, job: int) -> int:
    """The job's own rows, unless items were born meanwhile."""
    with conn.transaction():
        locked = conn.execute(statement("lock_leaving"), (job,)).fetchone()
        if locked is not None and locked[0]:
            conn.execute(statement("delete_job"), {"job": job})
    return 0
