"""What becomes of the items that a dead worker held."""

import logging
import time
from collections.abc import Sequence

import psycopg

from callboard.middleware.journal.counter_repair import repair_counters
from callboard.sql import timings
from callboard.sql.errors import is_counter_drift
from callboard.sql.pool import Conn
from callboard.sql.rows import Event, Failure, Retry
from callboard.sql.writes import outcomes, workers

log = logging.getLogger("callboard.worker")


def rescue(conn: Conn, worker: int) -> int:
    """Give back what a dead worker held, in one transaction; returns how many items. A worker that lives keeps its own.

    The death is charged to the items in hand that had crashed before, if there are any, else to each: whoever ends by
    itself is acquitted then (`record`). Charged `MAX_CRASHES` times an item is failed; the last of them it was alone.
    """
    try:
        return _bury(conn, worker)
    except psycopg.errors.CheckViolation as error:
        if not is_counter_drift(error):
            raise
    repair_counters(conn, [job for job, *_ in workers.running_rows(conn, worker)])
    return _bury(conn, worker)


def _bury(conn: Conn, worker: int) -> int:
    with conn.transaction():
        if not workers.declare_dead(conn, worker):
            return 0
        held = workers.running_rows(conn, worker)
        if held:
            now = time.monotonic()
            anew = all(crashes == 0 for _, _, _, crashes, _ in held)
            outcomes.record(conn, [_event(h, worker, now, charged=anew or h[3] > 0) for h in held], now)
    log.warning("worker %d is dead; %d of its items go on elsewhere", worker, len(held))
    return len(held)


def _event(held: Sequence[float], worker: int, now: float, *, charged: bool) -> Event:
    job, item, attempt, crashes = (int(n) for n in held[:4])
    over = charged and crashes + 1 >= timings.MAX_CRASHES
    why = f"its worker died while it was running (worker {worker})"
    if over:
        why += "; for the third time, so it is not tried again"
    elif not charged:
        why += "; another item in that worker's hands is to blame"
    return Event(
        job, item, attempt, "failed" if over else "retrying", held[4], now, worker,
        failure=Failure("crashed", "WorkerDied", why), retry=None if over else Retry(0.0), crashed=charged, ran=True,
    )  # fmt: skip
