"""Outcomes of attempts, and reports on attempts that run: the statements of the journal."""

from collections.abc import Iterable, Sequence

from callboard.sql import timings
from callboard.sql.arrays import parameters
from callboard.sql.pool import Conn
from callboard.sql.rows import Event, HangSample, JobControl, NewItem, Running
from callboard.sql.statements import statement


def record(conn: Conn, events: Iterable[Event], now: float) -> list[JobControl]:
    """Record how attempts ended, at most one event for each item; return what workers must know of the jobs.

    `now` is the monotonic time that `Event.ended` is compared with. A stale or repeated event changes nothing. Raises
    psycopg.errors.LockNotAvailable when another transaction holds one of the rows for `LOCK_WAIT_SECONDS`.
    """
    ordered = sorted(events, key=lambda e: (e.job, e.item))
    children = [(e, child) for e in ordered for child in e.children]
    ran = [e for e in ordered if e.ran]
    rows = conn.execute(
        statement("record"),
        {
            "now": now,
            "lock_wait": f"{timings.LOCK_WAIT_SECONDS * 1000:.0f}ms",
            "groups": timings.MAX_ERROR_GROUPS,
            "pause": timings.TURN_PAUSE_SECONDS,
            **parameters(Event, ordered),
            **parameters(NewItem, [child for _, child in children]),
            "parent_job": [e.job for e, _ in children],
            "parent": [e.item for e, _ in children],
            "ran_job": [e.job for e in ran],
            "ran_item": [e.item for e in ran],
            "ran_attempt": [e.attempt for e in ran],
            "ran_worker": [e.worker for e in ran],
        },
    )
    return [JobControl(*row) for row in rows]


def unlocked_jobs(conn: Conn, items: Iterable[tuple[int, int]]) -> set[int]:
    """Return the jobs of which no other transaction has locked the row or one of these items, (job, item)."""
    ordered = sorted(set(items))
    parameters = {"job": [job for job, _ in ordered], "item": [item for _, item in ordered]}
    return {row[0] for row in conn.execute(statement("unlocked_jobs"), parameters)}


def longest_lock(conn: Conn) -> str:
    """Describe the session whose transaction has held locks of jobs or items for longest."""
    row = conn.execute(statement("longest_lock")).fetchone()
    return row[0] if row else "a session that has ended meanwhile"


def report_running(conn: Conn, worker: int, running: Sequence[Running]) -> None:
    """Insert the rows in `running` of items that have run for a while, or update step and progress."""
    conn.execute(statement("report_running"), {"worker": worker, **parameters(Running, running)})


def report_stacks(conn: Conn, worker: int, stacks: Sequence[HangSample]) -> None:
    """Save where attempts hang that have a row in `running`."""
    conn.execute(statement("report_stacks"), {"worker": worker, **parameters(HangSample, stacks)})


def touch_jobs(conn: Conn, steps: dict[int, str | None]) -> None:
    """Record that items of these jobs started, with the step that they last reported (None: no step)."""
    conn.execute(statement("touch_jobs"), {"job": list(steps), "step": list(steps.values())})
