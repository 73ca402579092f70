"""Outcomes of attempts, and reports on attempts that run: the statements of the journal."""

from collections.abc import Iterable, Sequence

from callboard.sql.arrays import parameters
from callboard.sql.pool import Conn
from callboard.sql.rows import Event, JobControl, NewItem, Running
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_value, lists
from callboard.sql.writes.jobs import write_each


def record(conn: Conn, events: Iterable[Event], now: float) -> list[JobControl]:
    """Record how attempts ended, at most one event for each item; return what workers must know of the jobs.

    `now` is the monotonic time that `Event.ended` is compared with. A stale or repeated event changes nothing. Raises
    psycopg.errors.LockNotAvailable when another transaction holds one of the rows for `LOCK_WAIT_SECONDS`.
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
    """Return the jobs of which another transaction has locked the row or one of these items, (job, item)."""
    return set(fetch_ids(conn, "locked_jobs", **lists("job item", sorted(set(items)))))


def longest_lock(conn: Conn) -> str:
    """Describe the session with the oldest transaction that has locks of jobs or items."""
    return fetch_value(conn, "longest_lock") or "a session that has ended meanwhile"


def report_running(conn: Conn, worker: int, running: Sequence[Running]) -> set[tuple[int, int]]:
    """Insert the rows in `running` of items that have run for a while, or update what they do and where they hang.
    Return (job, item) of each, but for those that another transaction has locked.
    """
    return set(execute(conn, "report_running", worker=worker, **parameters(Running, running)))


def touch_jobs(conn: Conn, steps: dict[int, str | None]) -> set[int]:
    """Record that items of these jobs started, with the step that they last reported (None: no step); return the open
    jobs of which it was not, since another transaction has locked them, or a trigger of the user's keeps them from it.
    """
    return set(write_each(lambda jobs: fetch_ids(conn, "touch_jobs", job=jobs, step=[steps[j] for j in jobs]), steps))
