"""Lanes: a lane is the items of a job with the same value of one argument, of which only so many may be in flight.

All of such a job is published from the outbox, by the publisher that holds its claim: each function here but `hold` is
called by it alone.
"""

from collections.abc import Sequence

from callboard.sql import timings
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import JobControl, Outgoing, PublishClaim
from callboard.sql.statements import statement
from callboard.sql.writes.publishing import BATCH_BYTES


class ClaimTakenOver(RuntimeError):
    """Another publisher has the claim now, or the job was paused or stopped."""


def renew_claim(conn: Conn, claim: PublishClaim) -> None:
    """Renew the claim, in a transaction that only its holder may do. Raises ClaimTakenOver, which rolls that back."""
    parameters = {"job": claim.job, "token": claim.token, "lease": timings.PUBLISH_LEASE_SECONDS}
    if conn.execute(statement("renew_claim"), parameters).fetchone() is None:
        raise ClaimTakenOver(f"job {claim.job}")


def move_to_outbox(conn: Conn, claim: PublishClaim, start: int, stop: int, lanes: Sequence[tuple[int, str]]) -> int:
    """Put the bulk items from `start` to before `stop`, (item, lane), into the outbox; return how many were added.

    Raises ClaimTakenOver.
    """
    parameters = {
        "job": claim.job, "token": claim.token, "lease": timings.PUBLISH_LEASE_SECONDS,
        "suspect_below": claim.suspect_below, "start": start, "watermark": stop,
        "item": [item for item, _ in lanes], "lane": [lane for _, lane in lanes],
    }  # fmt: skip
    with transaction(conn):
        row = conn.execute(statement("move_to_outbox"), parameters).fetchone()
        if row is None:
            raise ClaimTakenOver(f"job {claim.job}")
    return int(row[0])


def messages_without_lane(conn: Conn, claim: PublishClaim, limit: int) -> list[tuple[int, bytes]]:
    """Return messages that wait for the job's turn and whose lane is not known yet: (outbox id, args)."""
    parameters = {"job": claim.job, "limit": limit, "bytes": BATCH_BYTES}
    return list(conn.execute(statement("messages_without_lane"), parameters))


def set_lanes(conn: Conn, claim: PublishClaim, lanes: Sequence[tuple[int, str]]) -> None:
    """Set the lanes of messages, (outbox id, lane). Raises ClaimTakenOver."""
    parameters = {"id": [number for number, _ in lanes], "lane": [lane for _, lane in lanes]}
    with transaction(conn):
        renew_claim(conn, claim)
        conn.execute(statement("set_lanes"), parameters)


def items_in_flight(conn: Conn, claim: PublishClaim) -> list[tuple[int, bytes]]:
    """Return the items in flight of the job's lanes: (item, args)."""
    return list(conn.execute(statement("items_in_flight"), (claim.job,)))


def change_lanes(conn: Conn, claim: PublishClaim, lanes: Sequence[tuple[int, str]]) -> None:
    """Apply `lane_by`: set the lanes of items in flight, (item, lane), and clear those of messages.

    Raises ClaimTakenOver.
    """
    parameters = {
        "job": claim.job, "by": claim.lane_by, "item": [item for item, _ in lanes], "lane": [lane for _, lane in lanes],
    }  # fmt: skip
    with transaction(conn):
        conn.execute(statement("clear_message_lanes"), {"job": claim.job})
        renew_claim(conn, claim)
        conn.execute(statement("change_lanes"), parameters)


def claim_lanes(conn: Conn, claim: PublishClaim, limit: int) -> list[Outgoing]:
    """Remove ended items from their lanes, and claim messages of lanes that have room. Raises ClaimTakenOver."""
    parameters = {
        "job": claim.job,
        "width": claim.lane_width,
        "lanes": claim.lanes,
        "limit": limit,
        "lease": timings.PUBLISH_LEASE_SECONDS,
        "bytes": BATCH_BYTES,
    }
    with transaction(conn):
        renew_claim(conn, claim)
        conn.execute(statement("free_lanes"), {"job": claim.job})
        return [Outgoing(*row) for row in conn.execute(statement("claim_lanes"), parameters)]


def hold(conn: Conn, job: int, item: int, seconds: float, reason: str) -> list[JobControl]:
    """Publish nothing of an item's lane, or of its job if it is in none, for some seconds from now; return what workers
    must know of the job now, none if it is over.
    """
    parameters = {"job": job, "item": item, "seconds": seconds, "reason": reason}
    return [JobControl(*row) for row in conn.execute(statement("hold"), parameters)]
