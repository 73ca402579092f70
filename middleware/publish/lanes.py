"""A job whose items are in lanes: what of it is published next."""

import hashlib
import json
from collections.abc import Iterator

from dramatiq.message import get_encoder

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import BulkClaim, Outgoing
from callboard.sql.writes import lanes, publishing

#: Characters of a value that is a lane's name as it is; a longer one is told by its digest.
LONGEST = 200
#: Items set aside of a job at the most while their lanes are full, and in one turn.
AHEAD = 100_000
A_TURN = 10_000


def lane_of(args: bytes, by: str) -> str:
    """The lane of an item: the value, as JSON, of the argument named `by`, or at that position. Empty without one.

    Arguments that this process can't decode share a lane with those that lack the value.
    """
    try:
        call = get_encoder().decode(args)
        return _name(call["args"][int(by)] if by.isdecimal() else call["kwargs"][by])
    except Exception:  # noqa: BLE001 — it is the app's own encoder that reads them
        return ""


def _name(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return text if len(text) <= LONGEST else hashlib.sha256(text.encode()).hexdigest()


def batches(conn: Conn, claim: BulkClaim, room: int) -> Iterator[list[Outgoing]]:
    """What there is room for in the job's lanes, claimed and to be published; it looks on until it has found `room`.

    Raises TakenOver.
    """
    by = claim.lane_by or ""
    if claim.laned_by != by:
        lanes.change_lanes(conn, claim, _laned(lanes.in_lanes(conn, claim), by))
    watermark, aside, step = claim.watermark, 0, timings.PUBLISH_WINDOW_ITEMS
    while room > 0:
        if late := lanes.unlaned(conn, claim, A_TURN):
            lanes.tell_lanes(conn, claim, _laned(late, by))
        batch = lanes.claim_lanes(conn, claim, min(room, timings.PUBLISH_WINDOW_ITEMS))
        room -= len(batch)
        if batch:
            yield batch
        elif watermark < claim.total and aside < A_TURN and claim.redo + aside < AHEAD:
            stop = min(claim.total, watermark + step)
            items = [(out.item, out.args) for out in publishing.bulk_items(conn, claim, watermark, stop)]
            aside += lanes.set_aside(conn, claim, watermark, stop, _laned(items, by))
            watermark, step = stop, min(2 * step, A_TURN)
        else:
            return


def _laned(rows: list[tuple[int, bytes]], by: str) -> list[tuple[int, str]]:
    return [(number, lane_of(args, by)) for number, args in rows]
