"""How attempts end, and what is reported of those in hand: the statements of the journal."""

from collections.abc import Iterable, Sequence
from typing import Any

from callboard.sql.pool import Conn
from callboard.sql.rows import (
    Event,
    Failure,
    HangSample,
    JobControl,
    Retry,
    Running,
)
from callboard.sql.statements import statement


def record(conn: Conn, events: Iterable[Event], now: float) -> list[JobControl]:
    """Record how attempts ended; returns the jobs touched. `now` is the monotonic time that `Event.ended` is against.

    At most one event an item. An event that is stale or repeated changes nothing.
    """
    ordered = sorted(events, key=lambda e: (e.job, e.item))
    rows = conn.execute(statement("record"), _record_parameters(ordered, now))
    return [JobControl(*row) for row in rows]


def _record_parameters(events: Sequence[Event], now: float) -> dict[str, Any]:
    children = [(e, child) for e in events for child in e.children]
    ran = [e for e in events if e.ran]
    return {
        "job": _plain(e.job for e in events),
        "item": _plain(e.item for e in events),
        "attempt": _plain(e.attempt for e in events),
        "state": _plain(e.state for e in events),
        "elapsed": _plain(e.elapsed for e in events),
        "age": _plain(now - e.ended for e in events),
        "worker": _plain(e.worker for e in events),
        "crashed": _flags([e.crashed for e in events]),
        "dead": _flags([e.dead for e in events]),
        "result": _texts([e.result for e in events]),
        **_failure_parameters([e.failure for e in events]),
        **_retry_parameters([e.retry for e in events]),
        "child_job": [c.job for _, c in children],
        "parent_job": [e.job for e, _ in children],
        "parent": [e.item for e, _ in children],
        "child_actor": [c.actor for _, c in children],
        "child_queue": [c.queue for _, c in children],
        "child_message_id": [c.message_id for _, c in children],
        "child_args": [c.args for _, c in children],
        "child_options": [c.options for _, c in children],
        "child_sent_ms": [c.sent_ms for _, c in children],
        "child_delay": [c.delay for _, c in children],
        "ran_job": [e.job for e in ran],
        "ran_item": [e.item for e in ran],
        "ran_worker": [e.worker for e in ran],
    }


def _failure_parameters(failures: Sequence[Failure | None]) -> dict[str, str]:
    return {
        "kind": _texts([None if f is None else f.kind for f in failures]),
        "error_type": _texts([None if f is None else f.error_type for f in failures]),
        "place": _texts([None if f is None else f.place for f in failures]),
        "message": _texts([None if f is None else f.message for f in failures]),
        "traceback": _texts([None if f is None else f.traceback for f in failures]),
        "traceback_size": _texts([None if f is None else str(f.size) for f in failures]),
    }


def _retry_parameters(retries: Sequence[Retry | None]) -> dict[str, Any]:
    if not any(retries):
        return {"retry_delay": "{}", "retry_options": "{}", "retry_sent_ms": "{}"}
    return {
        "retry_delay": [r and r.delay for r in retries],
        "retry_options": [r and r.options for r in retries],
        "retry_sent_ms": [r and r.sent_ms for r in retries],
    }


def _plain(values: Iterable[int | float | str]) -> str:
    """An array of numbers or names as PostgreSQL reads it: nothing in it needs quoting, and psycopg would look at each
    element of a list.
    """
    return "{" + ",".join(map(str, values)) + "}"


def _flags(values: Sequence[bool]) -> str:
    """An array of 0 and 1; an empty one when all are 0."""
    return _plain(map(int, values)) if any(values) else "{}"


def _texts(values: Sequence[str | None]) -> str:
    """An array of texts as PostgreSQL reads it; an empty one when there is none."""
    if not any(value is not None for value in values):
        return "{}"
    return "{" + ",".join("NULL" if value is None else _quoted(value) for value in values) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def report_running(conn: Conn, worker: int, running: Sequence[Running]) -> None:
    """Give items that have been in hand for a while their row in `running`, or move its step and progress."""
    progress = [r.progress or (None, None) for r in running]
    conn.execute(
        statement("report_running"),
        {
            "worker": worker,
            "job": [r.job for r in running],
            "item": [r.item for r in running],
            "attempt": [r.attempt for r in running],
            "age": [r.age for r in running],
            "step": [r.step for r in running],
            "done": [done for done, _ in progress],
            "total": [total for _, total in progress],
        },
    )


def report_stacks(conn: Conn, worker: int, stacks: Sequence[HangSample]) -> None:
    """Note where attempts hang that have a row in `running`."""
    conn.execute(
        statement("report_stacks"),
        {
            "worker": worker,
            "job": [s.job for s in stacks],
            "item": [s.item for s in stacks],
            "attempt": [s.attempt for s in stacks],
            "place": [s.place for s in stacks],
            "stack": [s.text for s in stacks],
        },
    )


def touch_jobs(conn: Conn, steps: dict[int, str | None]) -> None:
    """Note that items of these jobs started, with what they last said they are doing (None: nothing)."""
    conn.execute(statement("touch_jobs"), {"job": list(steps), "step": list(steps.values())})
