"""What a worker asks the database before it runs a message that is not plainly the only one of its item."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.burial import bury
from callboard.middleware.complaint import Complaint
from callboard.middleware.stamp import Stamp
from callboard.sql import writes
from callboard.sql.errors import REFUSED
from callboard.sql.pool import Conn
from callboard.sql.rows import Claim

log = logging.getLogger("callboard.tracking")
_complain = Complaint(log, "a message waits for the database: %s")

T = TypeVar("T")
#: Seconds between two tries while the database is away.
PAUSE = 0.5


class Stopping(RuntimeError):
    """The worker is asked to stop, and the database does not answer."""


class Failed(RuntimeError):
    """The item has failed, by the very attempt that the message carries: it belongs to the dead letters."""


def claim(conn: Conn, mark: Stamp, worker: int) -> Claim | None:
    """Claim the item of a suspect message for `worker`, which does not run it; None when it must not run: it is final,
    has another attempt by now, or somebody else holds it. Raises Failed.
    """
    found = writes.claim_item(conn, mark.job, mark.item, mark.attempt, worker)
    if found is None:
        log.warning("a message carries item %d/%d, which the database doesn't have", mark.job, mark.item)
    elif found.taken or found.holder == worker:  # held here and not run: the answer to its claim was lost
        return found
    elif found.holder is not None and not found.holder_alive:
        # What it held is given back, this item too, under its next attempt: this message has done its work.
        bury(conn, found.holder)
    elif found.state == "failed" and found.attempt == mark.attempt and found.crashes < writes.MAX_CRASHES:
        raise Failed
    else:
        log.info("a copy of the message of item %d/%d is dropped: it is %s", mark.job, mark.item, found.state)
    return None


def patiently(
    ask: Callable[[], T], stopping: Callable[[], bool], complain: Callable[[BaseException], None] = _complain
) -> T:
    """Ask the database until it answers. A stopping worker does not wait: raises Stopping, the message comes again.

    Raises what the data is to blame for.
    """
    while True:
        try:
            return ask()
        except REFUSED:
            raise
        except (psycopg.Error, PoolTimeout) as error:
            if stopping():
                raise Stopping from error
            complain(error)
            time.sleep(PAUSE)
