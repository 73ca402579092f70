"""Whether a suspect message's item may run, and messages that wait for another worker or for a paused job."""

from collections.abc import Iterable

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import (
    Claim,
)
from callboard.sql.statements import statement


def claim_item(conn: Conn, job: int, item: int, attempt: int, worker: int) -> Claim | None:
    """Ask whether `worker` may run a suspect message's item; None when the database has no such item."""
    row = conn.execute(
        statement("claim_item"),
        {"job": job, "item": item, "attempt": attempt, "worker": worker},
    ).fetchone()
    return Claim(*row) if row else None


def release_item(conn: Conn, job: int, item: int, worker: int) -> None:
    """Take back a claim: the item waits for its turn."""
    conn.execute(statement("release_item"), {"job": job, "item": item, "worker": worker})


def postpone(conn: Conn, job: int, item: int, attempt: int, actor: str) -> bool:
    """Have a message whose actor its worker lacks wait for one that has it; False when no worker ever had it."""
    row = conn.execute(
        statement("postpone"),
        {
            "job": job, "item": item, "attempt": attempt, "actor": actor, "delay": timings.POSTPONE_SECONDS,
            "dead_after": timings.DEAD_AFTER_SECONDS,
        },
    ).fetchone()  # fmt: skip
    return bool(row and row[0])


def make_postponed_due(conn: Conn) -> None:
    """Have those sent that waited for a worker with their actor, now that there is one."""
    conn.execute(statement("make_postponed_due"), {"dead_after": timings.DEAD_AFTER_SECONDS})


def park(conn: Conn, messages: Iterable[tuple[int, int, int]]) -> None:
    """Messages of paused jobs, (job, item, attempt), leave RabbitMQ, to be published again when their job goes on."""
    ordered = sorted(set(messages))
    parameters = {
        "job": [job for job, _, _ in ordered],
        "item": [item for _, item, _ in ordered],
        "attempt": [attempt for _, _, attempt in ordered],
    }
    with conn.transaction():
        conn.execute(statement("lock_parked"), parameters)
        conn.execute(statement("park"), parameters)
