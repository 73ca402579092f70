"""How attempts end, and what is reported of those that run: the statements of the journal."""

from collections.abc import Iterable, Sequence

from callboard.sql.arrays import parameters
from callboard.sql.pool import Conn
from callboard.sql.rows import Event, HangSample, JobControl, NewItem, Running
from callboard.sql.statements import statement


def record(conn: Conn, events: Iterable[Event], now: float) -> list[JobControl]:
    """Record how attempts ended; returns the jobs touched. `now` is the monotonic time that `Event.ended` is against.

    At most one event an item. An event that is stale or repeated changes nothing.
    """
    ordered = sorted(events, key=lambda e: (e.job, e.item))
    children = [(e, child) for e in ordered for child in e.children]
    ran = [e for e in ordered if e.ran]
    rows = conn.execute(
        statement("record"),
        {
            "now": now,
            **parameters(Event, ordered),
            **parameters(NewItem, [child for _, child in children]),
            "parent_job": [e.job for e, _ in children],
            "parent": [e.item for e, _ in children],
            "ran_job": [e.job for e in ran],
            "ran_item": [e.item for e in ran],
            "ran_worker": [e.worker for e in ran],
        },
    )
    return [JobControl(*row) for row in rows]


def report_running(conn: Conn, worker: int, running: Sequence[Running]) -> None:
    """Give items that have run for a while their row in `running`, or update its step and progress."""
    conn.execute(statement("report_running"), {"worker": worker, **parameters(Running, running)})


def report_stacks(conn: Conn, worker: int, stacks: Sequence[HangSample]) -> None:
    """Note where attempts hang that have a row in `running`."""
    conn.execute(statement("report_stacks"), {"worker": worker, **parameters(HangSample, stacks)})


def touch_jobs(conn: Conn, steps: dict[int, str | None]) -> None:
    """Note that items of these jobs started, with what they last said they are doing (None: nothing)."""
    conn.execute(statement("touch_jobs"), {"job": list(steps), "step": list(steps.values())})
