"""Lanes: the items of a job with the same value of one argument are a lane, and only a limited number may be in flight.

All items of such a job are published from the outbox, by the publisher that holds its claim. Only that publisher calls
the functions here, except `hold`.
"""

from collections.abc import Mapping, Sequence

from psycopg.types.json import Jsonb

from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import JobControl, Outgoing, PublishClaim
from callboard.sql.statements import execute, fetch, fetch_value, gives_row, lists
from callboard.sql.writes.publishing import BATCH_BYTES


class ClaimTakenOver(RuntimeError):
    """Another publisher has the claim now, or the job was paused or stopped."""


def renew_claim(conn: Conn, claim: PublishClaim) -> None:
    """Renew the claim, in a transaction that only its holder may commit. Raises ClaimTakenOver, which rolls it back."""
    if not gives_row(conn, "renew_claim", job=claim.job, token=claim.token):
        raise ClaimTakenOver(f"job {claim.job}")


def move_to_outbox(conn: Conn, claim: PublishClaim, start: int, stop: int, lanes: Sequence[tuple[int, str]]) -> int:
    """Put the bulk items `lanes`, each (item, lane), from `start` to before `stop`, into the outbox; return how many
    were added.

    Raises ClaimTakenOver.
    """
    with transaction(conn):
        aside: int | None = fetch_value(
            conn, "move_to_outbox", job=claim.job, token=claim.token, suspect_below=claim.suspect_below, start=start,
            watermark=stop, **lists("item lane", lanes),
        )  # fmt: skip
        if aside is None:
            raise ClaimTakenOver(f"job {claim.job}")
    return aside


def messages_without_lane(conn: Conn, claim: PublishClaim, limit: int) -> list[tuple[int, bytes]]:
    """Return messages that wait for the job's turn and have no lane yet: (outbox id, args)."""
    return execute(conn, "messages_without_lane", job=claim.job, limit=limit, bytes=BATCH_BYTES).fetchall()


def set_lanes(conn: Conn, claim: PublishClaim, lanes: Sequence[tuple[int, str]]) -> None:
    """Set the lanes of messages, (outbox id, lane). Raises ClaimTakenOver."""
    with transaction(conn):
        renew_claim(conn, claim)
        execute(conn, "set_lanes", **lists("id lane", lanes))


def items_in_flight(conn: Conn, claim: PublishClaim, after: int) -> list[tuple[int, bytes]]:
    """Return the next items in flight of the job's lanes, after item `after`: (item, args); empty at the end."""
    return execute(conn, "items_in_flight", job=claim.job, after=after, bytes=BATCH_BYTES).fetchall()


def count_in_flight(conn: Conn, claim: PublishClaim) -> int:
    """Return how many items of the job's lanes are in flight."""
    return int(fetch_value(conn, "count_in_flight", job=claim.job))


def change_lanes(conn: Conn, claim: PublishClaim, lanes: Sequence[tuple[int, str]]) -> None:
    """Apply a new `lane_by`: set the lanes of items in flight, (item, lane), and clear the lanes of messages.

    Raises ClaimTakenOver.
    """
    with transaction(conn):
        execute(conn, "clear_message_lanes", job=claim.job)
        renew_claim(conn, claim)
        execute(conn, "change_lanes", job=claim.job, by=claim.lane_by, **lists("item lane", lanes))


def claim_lanes(conn: Conn, claim: PublishClaim, limit: int) -> list[Outgoing]:
    """Remove ended items from their lanes, and claim messages of lanes with room. Raises ClaimTakenOver."""
    with transaction(conn):
        renew_claim(conn, claim)
        execute(conn, "free_lanes", job=claim.job)
        return fetch(
            conn, Outgoing, "claim_lanes", job=claim.job, width=claim.lane_width, lanes=claim.lanes, limit=limit,
            bytes=BATCH_BYTES,
        )  # fmt: skip


def hold(conn: Conn, job: int, item: int, lanes: Mapping[str, str], seconds: float, reason: str) -> list[JobControl]:
    """Hold back an item's lane, or its job if that has no lanes, for `seconds` from now. Returns the job's control
    state for workers, an empty list if the job is over. `lanes`: {argument: the item's lane by it}.

    Raises psycopg.errors.LockNotAvailable.
    """
    return fetch(conn, JobControl, "hold", job=job, item=item, lanes=Jsonb(lanes), seconds=seconds, reason=reason)
