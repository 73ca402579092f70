"""Requeues the items of a dead worker."""

import logging
import time

import psycopg

from callboard.middleware.journal.counter_repair import repair_counters
from callboard.sql import timings
from callboard.sql.errors import is_counter_drift
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import Event, Failure, Retry
from callboard.sql.writes import outcomes, workers

log = logging.getLogger("callboard.worker")


def rescue(conn: Conn, worker: int) -> int:
    """Requeue a dead worker's items in one transaction; return how many, 0 if it lives.

    Its death counts as a crash of those that had crashed before, else of all; an item that ends normally later has its
    crash count reset (`record`). An item with `MAX_CRASHES` crashes fails; before the last of them it ran alone (see
    `Isolation`).
    """
    try:
        return _rescue(conn, worker)
    except psycopg.errors.CheckViolation as error:
        if not is_counter_drift(error):
            raise
    repair_counters(conn, [job for job, *_ in workers.running_rows(conn, worker)])
    return _rescue(conn, worker)


def _rescue(conn: Conn, worker: int) -> int:
    with transaction(conn):
        if not workers.declare_dead(conn, worker):
            return 0
        held = workers.running_rows(conn, worker)
        if held:
            now = time.monotonic()
            suspected = any(crashes for _, _, _, crashes, _ in held)
            events = [_event(worker, now, *row, charged=not suspected or row[3] > 0) for row in held]
            outcomes.record(conn, events, now)
    log.warning("worker %d is dead; its %d items run again elsewhere", worker, len(held))
    return len(held)


def _event(
    worker: int, now: float, job: int, item: int, attempt: int, crashes: int, elapsed: float, *, charged: bool
) -> Event:
    final = charged and crashes + 1 >= timings.MAX_CRASHES
    why = f"its worker died while it was running (worker {worker})"
    if final:
        why += "; for the third time, so it is not tried again"
    elif not charged:
        why += "; another item of that worker is to blame"
    return Event(
        job, item, attempt, "failed" if final else "retrying", elapsed, now, worker,
        failure=Failure("crashed", "WorkerDied", why), retry=None if final else Retry(0.0), crashed=charged, ran=True,
    )  # fmt: skip
