"""Claims the item of a message that may be a second copy, before it runs; or lets it wait for another worker."""

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
    """The item failed for good with the attempt that the message carries: the message belongs to the dead letters."""


class MovedBack(RuntimeError):
    """The item failed for good, and somebody has moved its message from the dead letters back to the queue."""


class ItemLocked(RuntimeError):
    """Another transaction holds the item: no thread waits for its end."""


def claim(conn: Conn, attempt: Attempt, worker: int, *, alone: bool = False) -> Claim | None:
    """Claim an attempt's item for `worker`, which must not run it yet; return None when the attempt must not run: the
    item is final, has a newer attempt, or another worker holds it. An item that is to run alone is claimed only if it
    does (`alone`): see `Claim.isolate`. Raises ItemLocked, AlreadyFailed, MovedBack, psycopg.Error.
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
    elif found.taken or found.isolate or found.holder == worker:  # an earlier claim of it, whose answer was lost
        return found
    elif found.holder is not None and not found.holder_alive:
        rescue(conn, found.holder)  # requeues this item too, so this message is not needed any more
    elif was_dead and found.state == "failed":
        raise MovedBack
    elif found.state == "failed" and found.attempt == attempt.number and found.crashes < timings.MAX_CRASHES:
        raise AlreadyFailed
    else:
        log.info("a copy of the message of item %d/%d is dropped: it is %s", *attempt.key, found.state)
    return None


def postpone(conn: Conn, stamp: Stamp, actor: str) -> bool:
    """Let a message wait for a worker that has its actor; return False when its item is to fail. Raises ItemLocked,
    psycopg.Error.
    """
    try:
        return claims.postpone(conn, stamp.job, stamp.item, stamp.attempt, actor)
    except LockNotAvailable as error:
        raise ItemLocked from error
