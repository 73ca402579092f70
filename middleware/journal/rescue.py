"""Requeues the items of a dead worker."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from psycopg.errors import LockNotAvailable

from callboard.middleware.journal.counter_repair import repair_counters
from callboard.middleware.message.failure import describe
from callboard.middleware.process.run_file import RunFile
from callboard.sql import timings
from callboard.sql.errors import DATA_ERRORS, is_counter_drift
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import Event, Failure, Held, Retry
from callboard.sql.writes import outcomes, workers

log = logging.getLogger("callboard.worker")


def rescue(conn: Conn, worker: int) -> int:
    """Requeue a dead worker's items in one transaction; return how many, 0 if the worker is alive.

    The crash is charged to some of the items (`_charged`); an item that later ends normally has its crash count reset
    (`record`). An item with `MAX_CRASHES` crashes fails; its last attempt ran alone (see `Isolation`).

    An item fails if the database refuses its retry, as a user's trigger may. If another transaction has locked an item,
    a later rescue requeues it.
    """
    try:
        return _rescue(conn, worker)
    except (*DATA_ERRORS, LockNotAvailable) as error:
        if not is_counter_drift(error):
            return _rescue_apart(conn, worker)
    repair_counters(conn, [held.job for held in workers.running_rows(conn, worker)])
    return _rescue(conn, worker)


def rescue_of_host(conn: Conn, runs: RunFile) -> None:
    """Requeue at once the items of processes that died on this host. Their files name the attempts, even those that had
    just begun. The sweep requeues the items that can't be requeued now, and the next call reads the file again; so it
    does while an item runs elsewhere because its message was redelivered there first.

    Raises psycopg.Error but for DATA_ERRORS and LockNotAvailable.
    """
    for dead in runs.dead():
        try:
            newly = workers.note_death(conn, dead.worker, dead.pid, dead.running)
            if newly is not None:
                if newly or workers.running_rows(conn, dead.worker):
                    rescue(conn, dead.worker)
                why = _death(f" (worker {dead.worker}); it ran again elsewhere")
                if workers.keep_deaths(conn, dead.worker, dead.running, why):
                    runs.put_off(dead)
                    continue
        except (*DATA_ERRORS, LockNotAvailable) as error:
            log.warning("the items of worker %d, which is dead, can't be requeued yet: %s", dead.worker, error)
        else:
            dead.path.unlink(missing_ok=True)


def _rescue(conn: Conn, worker: int) -> int:
    with transaction(conn):
        if not workers.declare_dead(conn, worker):
            return 0
        held = workers.running_rows(conn, worker)
        if held:
            now = time.monotonic()
            outcomes.record(conn, _events(worker, now, _crash_limits(held)), now)
    log.warning("worker %d is dead; its %d items run again elsewhere", worker, len(held))
    return len(held)


def _rescue_apart(conn: Conn, worker: int) -> int:
    """Requeue a dead worker's items one by one, each in a transaction of its own: jobs are locked after all items.

    The items to charge are chosen once, including those that are locked now. Several processes may do this at the same
    time: the first one requeues an item.
    """
    with transaction(conn):
        if not workers.declare_dead(conn, worker):
            return 0
        limits = _crash_limits(workers.running_rows(conn, worker))
        workers.save_crash_limits(conn, worker, [(one.job, one.item, limit) for one, limit in limits.items()])
    now = time.monotonic()
    locked = outcomes.locked_jobs(conn, [(one.job, one.item) for one in limits])
    count = 0
    for event in _events(worker, now, limits):
        if event.job in locked:
            continue
        try:
            count += _record(conn, event, now)
        except LockNotAvailable as error:
            locked.add(event.job)  # a user's trigger may wait at each item of this job
            log.warning("items of job %d of a dead worker can't be requeued yet: %s", event.job, error)
    return count


def _record(conn: Conn, event: Event, now: float) -> int:
    """Record one outcome; return 1, or 0 if the database refuses it. Raises LockNotAvailable."""
    try:
        outcomes.record(conn, [event], now)
    except DATA_ERRORS as error:
        if event.state == "failed":
            log.warning("item %d/%d of a dead worker can't be requeued yet: %s", event.job, event.item, error)
            return 0
        failure = _death(f", and it can't be run again: {describe(error).message}")
        return _record(conn, replace(event, state="failed", failure=failure, retry=None, crashed=True), now)
    return 1


def _events(worker: int, now: float, limits: Mapping[Held, int]) -> list[Event]:
    return [_event(worker, now, one, limit) for one, limit in limits.items()]


def _crash_limits(held: Sequence[Held]) -> dict[Held, int]:
    """Return the number of crashes at which each item fails; 0: the crash is not charged to it."""
    undecided = [one for one in held if one.crash_limit is None]
    charged = _charged(undecided) if undecided else {}
    return {one: charged.get(one, 0) if one.crash_limit is None else one.crash_limit for one in held}


def _charged(held: Sequence[Held]) -> dict[Held, int]:
    """Return the items that the crash is charged to, each with the number of crashes at which it fails.

    An item whose next crash would be its last runs its first `DEADLY_SECONDS` alone: no other attempt begins in them.
    So if it began last and the worker died within them, this item is charged. If another attempt began after it, it had
    passed them, even if the last heartbeat came before. Otherwise the items with earlier crashes are charged, or all
    items. If there are new attempts, long ones may be innocent: the new ones are charged too if none was, and items
    fail only at twice the number of crashes.
    """
    last = min(held, key=lambda one: one.ran)
    if last.crashes >= timings.MAX_CRASHES - 1 and last.ran < timings.DEADLY_SECONDS:
        return {last: timings.MAX_CRASHES}
    new = [one for one in held if one.crashes < timings.MAX_CRASHES - 1 and one.ran < timings.DEADLY_SECONDS]
    suspected = [one for one in held if one.crashes] or held
    if not any(one in new for one in suspected):
        suspected = [*suspected, *new]
    return dict.fromkeys(suspected, timings.MAX_CRASHES * (2 if new else 1))


def _event(worker: int, now: float, held: Held, limit: int) -> Event:
    """Return the outcome of an attempt whose worker died. `limit`: see `_crash_limits`."""
    crashes = held.crashes + 1
    final = 0 < limit <= crashes
    why = f" (worker {worker})"
    if final:
        why += f"; {crashes} crashes are charged to it, so it is not tried again"
    elif not limit:
        why += "; the crash is charged to another item of that worker"
    return Event(
        held.job, held.item, held.attempt, "failed" if final else "retrying", held.elapsed, now, worker,
        failure=_death(why), retry=None if final else Retry(0.0), crashed=limit > 0,
        ran=True,
    )  # fmt: skip


def _death(more: str) -> Failure:
    return Failure("crashed", "WorkerDied", f"its worker died while it was running{more}")
