"""Claims of items of suspect messages, and messages that wait for another worker or for a paused job."""

from collections.abc import Iterable

from callboard.sql import settings, timings
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import Claim
from callboard.sql.statements import required, statement

#: Messages that are looked at of an actor that no worker has announced; and looks in a row while all of them are due.
OLDEST_AWAITING, MAX_LOOKS = 50, 20


def claim_item(conn: Conn, job: int, item: int, attempt: int, worker: int) -> Claim | None:
    """Claim a suspect message's item for `worker`, if it may run; None when the database has no such item."""
    row = conn.execute(
        statement("claim_item"), {"job": job, "item": item, "attempt": attempt, "worker": worker}
    ).fetchone()
    return Claim(*row) if row else None


def release_item(conn: Conn, job: int, item: int, attempt: int, worker: int) -> None:
    """Give up the claim of an item that does not run yet."""
    conn.execute(statement("release_item"), {"job": job, "item": item, "attempt": attempt, "worker": worker})


def postpone(conn: Conn, job: int, item: int, attempt: int, actor: str) -> bool:
    """Let a message wait for a worker that has its actor; return False when its item is to fail, since no worker has
    announced that actor for too long.
    """
    row = conn.execute(
        statement("postpone"),
        {
            "job": job, "item": item, "attempt": attempt, "actor": actor, "delay": timings.POSTPONE_SECONDS,
            "dead_after": timings.DEAD_AFTER_SECONDS, "actor_wait": settings.ACTOR_WAIT.get(),
        },
    ).fetchone()  # fmt: skip
    return not required(row)[0]


def make_postponed_due(conn: Conn) -> None:
    """Make postponed messages due whose actor a live worker has, or no worker has announced for too long."""
    parameters = {
        "dead_after": timings.DEAD_AFTER_SECONDS, "actor_wait": settings.ACTOR_WAIT.get(), "limit": OLDEST_AWAITING,
    }  # fmt: skip
    for _ in range(MAX_LOOKS):
        if conn.execute(statement("make_postponed_due"), parameters).rowcount < OLDEST_AWAITING:
            return


def park(conn: Conn, messages: Iterable[tuple[int, int, int]]) -> None:
    """Put messages of paused jobs, (job, item, attempt), into the outbox, to be published when their job goes on."""
    ordered = sorted(set(messages))
    parameters = {
        "job": [job for job, _, _ in ordered],
        "item": [item for _, item, _ in ordered],
        "attempt": [attempt for _, _, attempt in ordered],
    }
    with transaction(conn):
        conn.execute(statement("lock_parked"), parameters)
        conn.execute(statement("park"), parameters)
