"""What a worker asks the database before it runs a message that is not plainly the only one of its item."""

import logging

from callboard.middleware.journal.rescue import rescue
from callboard.middleware.message.attempt import Attempt
from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import Claim
from callboard.sql.writes import claims

log = logging.getLogger("callboard.tracking")


class Failed(RuntimeError):
    """The item has failed, by the very attempt that the message carries: it belongs to the dead letters."""


def claim(conn: Conn, attempt: Attempt, worker: int) -> Claim | None:
    """Claim the item of a suspect message for `worker`, which does not run it; None when it must not run: it is final,
    has another attempt by now, or somebody else holds it. Raises Failed.
    """
    found = claims.claim_item(conn, *attempt.key, attempt.number, worker)
    if found is None:
        log.warning("a message carries item %d/%d, which the database doesn't have", *attempt.key)
    elif found.taken or found.holder == worker:  # held here and not run: the answer to its claim was lost
        return found
    elif found.holder is not None and not found.holder_alive:
        # What it held is given back, this item too, under its next attempt: this message has done its work.
        rescue(conn, found.holder)
    elif found.state == "failed" and found.attempt == attempt.number and found.crashes < timings.MAX_CRASHES:
        raise Failed
    else:
        log.info("a copy of the message of item %d/%d is dropped: it is %s", *attempt.key, found.state)
    return None
