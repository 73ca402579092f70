"""Lanes of a job: which lane an item belongs to, and which items are published next."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

from callboard.middleware.message.envelope import decode_args
from callboard.sql import timings
from callboard.sql.json_values import is_storable
from callboard.sql.pool import Conn
from callboard.sql.rows import Outgoing, PublishClaim
from callboard.sql.writes import lanes, publishing

#: The most characters of a lane's name. The name of a longer value is its digest.
NAME_CHARS = 200
#: The most items of a job that wait in the outbox because their lanes are full, and how many are added in one turn.
MAX_ASIDE_ITEMS = 100_000
TURN_ITEMS = 10_000


def lane_of(args: bytes, by: str) -> str:
    """Return an item's lane: the value, as JSON, of the argument with the name or position `by`. Empty if it has none.

    The lane is also empty when this process can't decode the arguments.
    """
    try:
        return lane_of_call(*decode_args(args), by)
    except Exception:  # noqa: BLE001 — the app's encoder may raise anything
        return ""


def lane_of_call(args: Sequence[object], kwargs: Mapping[str, object], by: str) -> str:
    """Like `lane_of`, for decoded arguments."""
    try:
        return _name(args[int(by)] if by.isdecimal() else kwargs[by])
    except Exception:  # noqa: BLE001 — a value's repr may raise anything
        return ""


def lanes_of_call(args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, str]:
    """Return the lane of a call for each of its arguments, as {name or position: lane}."""
    names = (*map(str, range(len(args))), *filter(is_storable, kwargs))
    return {by: lane_of_call(args, kwargs, by) for by in names}


def _name(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return text if len(text) <= NAME_CHARS else hashlib.sha256(text.encode()).hexdigest()


def batches(conn: Conn, claim: PublishClaim, room: int) -> Iterator[list[Outgoing]]:
    """Yield batches of claimed messages of lanes that are not full, `room` messages in all.

    Bulk items whose lanes are full move to the outbox, until enough items of other lanes are found. Raises
    ClaimTakenOver.
    """
    by = claim.lane_by or ""
    if claim.applied_lane_by != by:
        lanes.change_lanes(conn, claim, _of_items_in_flight(conn, claim, by))
    watermark, aside, step = claim.watermark, 0, timings.PUBLISH_WINDOW_ITEMS
    while room > 0:
        if late := lanes.messages_without_lane(conn, claim, TURN_ITEMS):
            lanes.set_lanes(conn, claim, _with_lanes(late, by))
        batch = lanes.claim_lanes(conn, claim, min(room, timings.PUBLISH_WINDOW_ITEMS))
        room -= len(batch)
        if batch:
            yield batch
        elif claim.lanes is not None and _all_full(conn, claim):
            return
        elif watermark < claim.total and aside < TURN_ITEMS and claim.in_turn + aside < MAX_ASIDE_ITEMS:
            stop = min(claim.total, watermark + step)
            found, stop = publishing.bulk_items(conn, claim, watermark, stop)
            items = [(out.item, out.args) for out in found]
            aside += lanes.move_to_outbox(conn, claim, watermark, stop, _with_lanes(items, by))
            watermark, step = stop, min(2 * step, TURN_ITEMS)
        else:
            return


def _all_full(conn: Conn, claim: PublishClaim) -> bool:
    """Return whether all allowed lanes are full: then no other item can be found."""
    return lanes.count_in_flight(conn, claim) >= (claim.lanes or 0) * (claim.lane_width or 0)


def _of_items_in_flight(conn: Conn, claim: PublishClaim, by: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    while page := lanes.items_in_flight(conn, claim, found[-1][0] if found else -1):
        found += _with_lanes(page, by)
    return found


def _with_lanes(rows: list[tuple[int, bytes]], by: str) -> list[tuple[int, str]]:
    return [(number, lane_of(args, by)) for number, args in rows]
