"""Claims the item of a message that may be a duplicate, before it runs; postpones an item whose actor is missing."""

import logging

from psycopg.errors import LockNotAvailable

from callboard.middleware.journal.rescue import rescue
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.stamp import Stamp
from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import Claim
from callboard.sql.writes import claims

log = logging.getLogger("callboard.tracking")


class AlreadyFailed(RuntimeError):
    """The attempt that the message carries has failed the item for good: the message belongs to the dead letters."""


class MovedBack(RuntimeError):
    """The item failed for good, and somebody moved its message from the dead letters back to the queue."""


class ItemLocked(RuntimeError):
    """Another transaction has locked the item. No thread waits for the lock."""


def claim(conn: Conn, attempt: Attempt, worker: int, *, alone: bool = False) -> Claim | None:
    """Claim an attempt's item for `worker`, before it runs. Returns None when the attempt must not run: the item is
    final, has a newer attempt, or another worker holds it. An item that must run alone is claimed only with `alone`:
    see `Claim.isolate`. Raises ItemLocked, AlreadyFailed, MovedBack, psycopg.Error.
    """
    try:
        found = claims.claim_item(conn, *attempt.key, attempt.number, worker, alone=alone)
    except LockNotAvailable as error:
        raise ItemLocked from error
    was_dead = any(delivery.was_dead for delivery in attempt.deliveries)
    if found is None:
        log.warning("a message carries item %d/%d, which the database doesn't have; it is dropped", *attempt.key)
        if was_dead:
            raise AlreadyFailed
    elif found.taken or found.isolate or found.holder == worker:  # the answer to an earlier claim was lost
        return found
    elif found.holder is not None and not found.holder_alive:
        rescue(conn, found.holder)  # requeues this item too, so this message is obsolete
    elif was_dead and found.state == "failed":
        raise MovedBack
    elif found.state == "failed" and found.attempt == attempt.number and found.crashes < timings.MAX_CRASHES:
        raise AlreadyFailed
    else:
        log.info("a copy of the message of item %d/%d is dropped: it is %s", *attempt.key, found.state)
    return None


def postpone(conn: Conn, stamp: Stamp, actor: str) -> bool:
    """Postpone an item until a worker has its actor; return False when the item must fail. Raises ItemLocked,
    psycopg.Error.
    """
    try:
        return claims.postpone(conn, stamp.job, stamp.item, stamp.attempt, actor)
    except LockNotAvailable as error:
        raise ItemLocked from error
