"""Outcomes of attempts, and reports of running attempts: the statements of the journal."""

from collections.abc import Iterable, Sequence

from callboard.sql.arrays import parameters
from callboard.sql.pool import Conn
from callboard.sql.rows import Event, JobControl, NewItem, Running
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_value, lists
from callboard.sql.writes.jobs import write_each


def record(conn: Conn, events: Iterable[Event], now: float) -> list[JobControl]:
    """Record the outcomes of attempts, at most one per item; return the control states of their jobs.

    `now` is the current monotonic time, with which `Event.ended` is compared. A stale or repeated event changes
    nothing. Raises psycopg.errors.LockNotAvailable when another transaction has locked one of the rows for
    `LOCK_WAIT_SECONDS`.
    """
    ordered = sorted(events, key=lambda e: (e.job, e.item))
    children = [(e, child) for e in ordered for child in e.children]
    ran = [(e.job, e.item, e.attempt, e.worker) for e in ordered if e.ran]
    return fetch(
        conn, JobControl, "record", now=now,
        **parameters(Event, ordered),
        **parameters(NewItem, [child for _, child in children]),
        **lists("parent_job parent", [(e.job, e.item) for e, _ in children]),
        **lists("ran_job ran_item ran_attempt ran_worker", ran),
    )  # fmt: skip


def locked_jobs(conn: Conn, items: Iterable[tuple[int, int]]) -> set[int]:
    """Return the jobs whose row, or one of these items (job, item), another transaction has locked."""
    return set(fetch_ids(conn, "locked_jobs", **lists("job item", sorted(set(items)))))


def longest_lock(conn: Conn) -> str:
    """Describe the session with the oldest transaction that holds locks of jobs or items."""
    return fetch_value(conn, "longest_lock") or "a session that has ended meanwhile"


def report_running(conn: Conn, worker: int, running: Sequence[Running]) -> set[tuple[int, int]]:
    """Insert or update the rows in `running` of items that have run for a while: their step, their progress, and where
    they hang. Returns (job, item) of each, without those that another transaction has locked.
    """
    return set(execute(conn, "report_running", worker=worker, **parameters(Running, running)))


def touch_jobs(conn: Conn, seen: dict[int, tuple[str | None, float]]) -> set[int]:
    """Record that items of these jobs started. `seen`: the last reported step of each (None: no step), and the seconds
    since its first start. Returns the open jobs that were skipped, because another transaction has locked them, or a
    user's trigger refuses the update.
    """
    return set(
        write_each(
            lambda ids: fetch_ids(conn, "touch_jobs", job=ids, **lists("step age", [seen[job] for job in ids])), seen
        )
    )
