"""Claims of the items to publish next: bulk items by the watermark of their job, all other messages by the outbox."""

from collections.abc import Mapping, Sequence
from typing import Any

from callboard.sql.pool import Conn
from callboard.sql.rows import DueQueue, Outgoing, PublishClaim
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_one, fetch_value, lists

#: Bytes of messages that are read at a time: the arguments of one message may have a mebibyte.
BATCH_BYTES = 8 * 1_048_576


def due_queues(conn: Conn, full: Sequence[str] = (), passed: Sequence[int] = ()) -> list[DueQueue]:
    """Return the queues with something to publish, without `full` ones; of the jobs in `passed` only dead letters."""
    return fetch(conn, DueQueue, "due_queues", full=list(full), passed=list(passed))


def due_tenants(conn: Conn, full: Sequence[str] = (), passed: Sequence[int] = ()) -> list[tuple[str, int]]:
    """Return the tenants that have a job in turn, as (tenant, priority), in the order in which `claim_job` serves them.
    A tenant with jobs of several priorities is listed with each of them.
    """
    return execute(conn, "due_tenants", full=list(full), passed=list(passed)).fetchall()


def claim_job(
    conn: Conn, tenants: Sequence[tuple[str, int]] | None = None, *, full: Sequence[str] = (),
    passed: Sequence[int] = (),
) -> PublishClaim | None:  # fmt: skip
    """Claim the next job in turn that has something to publish, but none in `passed` or with a `full` queue. `tenants`:
    what `due_tenants` returned (None: it is called).
    """
    order = due_tenants(conn, full, passed) if tenants is None else tenants
    return fetch_one(
        conn, PublishClaim, "claim_job", full=list(full), passed=list(passed),
        **lists("tenants priorities", order),
    )  # fmt: skip


def claim_given_job(conn: Conn, job: int, *, full: Sequence[str] = ()) -> PublishClaim | None:
    """Claim a job if it has something to publish, and its queue is not `full`."""
    return fetch_one(conn, PublishClaim, "claim_given_job", full=list(full), job=job)


def due_jobs(conn: Conn, full: Sequence[str] = (), passed: Sequence[int] = ()) -> list[int]:
    """Return the first jobs among which `claim_job` chooses. Used to claim them one by one after a user's trigger
    refused `claim_job`.
    """
    return fetch_ids(conn, "due_jobs", full=list(full), passed=list(passed))


def claim_in_turn(conn: Conn, claim: PublishClaim, limit: int) -> list[Outgoing]:
    """Claim outbox messages that are published in the turn of a claimed job."""
    return fetch(
        conn, Outgoing, "claim_in_turn", job=claim.job, turn=claim.turn, limit=limit, limited=claim.limited,
        bytes=BATCH_BYTES,
    )  # fmt: skip


def bulk_items(conn: Conn, claim: PublishClaim, start: int, end: int) -> tuple[list[Outgoing], int]:
    """Return the messages of a claimed job's bulk items from `start`, and the item after the last: `end`, or an earlier
    one if they reach `BATCH_BYTES`.
    """
    rows = execute(conn, "bulk_items", job=claim.job, start=start, end=end, bytes=BATCH_BYTES)
    found = [
        Outgoing(
            claim.job, item, attempt, claim.epoch, item < claim.suspect_below, claim.actor, claim.queue,
            f"{claim.job}-{item}", args, options, None,
        )
        for item, attempt, args, options in rows
    ]  # fmt: skip
    size = sum(len(out.args) + len(out.options or b"") for out in found)
    return found, found[-1].item + 1 if size >= BATCH_BYTES else end


def advance_watermark(
    conn: Conn, claim: PublishClaim, *, watermark: int, published: int, suspect_below: int = 0, keep: bool,
    unserved: bool = False, pause: float = 0.0,
) -> bool:  # fmt: skip
    """Move the watermark; return False when the claim was taken over, or the job was paused or stopped. `keep` renews
    the claim; otherwise it is released. An `unserved` job gets its turn back, and its next turn comes after `pause`
    seconds.
    """
    goes_on = fetch_value(
        conn, "advance_watermark", job=claim.job, token=claim.token, watermark=watermark, published=published,
        suspect_below=suspect_below, keep=keep, unserved=unserved, served_at=claim.served_at, turn=claim.turn,
        seq=claim.seq, pause=pause,
    )  # fmt: skip
    return bool(goes_on)


def claim_outbox(conn: Conn, limit: int, rooms: Mapping[str, int], passed: Sequence[int] = ()) -> list[Outgoing]:
    """Claim due outbox messages, at most `limit`, and for each queue about as many as it has room for. For other
    queues, and for the jobs in `passed`, claim only dead letters.
    """
    queues = lists("queue room", rooms.items())
    return fetch(conn, Outgoing, "claim_outbox", limit=limit, bytes=BATCH_BYTES, passed=list(passed), **queues)


def renew_outbox(conn: Conn, batch: Sequence[Outgoing]) -> None:
    """Renew the claims of outbox messages that have not expired."""
    execute(conn, "renew_outbox", **_rows_of(batch))


def confirm_outbox(conn: Conn, sent: Sequence[Outgoing]) -> None:
    """Delete outbox messages that the broker confirmed."""
    execute(conn, "confirm_outbox", **_rows_of(sent))


def release_outbox(conn: Conn, unsent: Sequence[Outgoing], *, pause: float = 0.0) -> None:
    """Release outbox messages that were not confirmed; they are due in `pause` seconds."""
    execute(conn, "release_outbox", **_rows_of(unsent), pause=pause)


def _rows_of(messages: Sequence[Outgoing]) -> dict[str, Any]:
    return lists("id attempt", [(message.outbox, message.attempt) for message in messages])
