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
    """Requeue a dead worker's items in one transaction; return how many, 0 if it lives.

    Its death is charged to some of them (`_charged`); an item that ends normally later has its crash count reset
    (`record`). An item with `MAX_CRASHES` crashes fails; before the last of them it ran alone (see `Isolation`).

    An item whose retry the database refuses, as a trigger of the user's may, fails. One that another transaction has
    locked is requeued by a later rescue.
    """
    try:
        return _rescue(conn, worker)
    except (*DATA_ERRORS, LockNotAvailable) as error:
        if not is_counter_drift(error):
            return _rescue_apart(conn, worker)
    repair_counters(conn, [held.job for held in workers.running_rows(conn, worker)])
    return _rescue(conn, worker)


def rescue_of_host(conn: Conn, runs: RunFile) -> None:
    """Requeue at once what the processes were running that died on this host: their files tell it, also of attempts
    that had just begun. What can't be requeued now is left to the sweep, and the file to the next call: also while
    an item runs elsewhere, since its message came there first.

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

    What the death is charged to is decided once, for those too that are locked now. Several processes may do this at
    once: each item is requeued by the first.
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
            locked.add(event.job)  # a trigger of the user's may wait at each of its items
            log.warning("items of job %d of a dead worker can't be requeued yet: %s", event.job, error)
    return count


def _record(conn: Conn, event: Event, now: float) -> int:
    """Record one of these ends; return how many items that were: 0 if it is refused. Raises LockNotAvailable."""
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
    """Return the crashes after which each item fails; 0: the death of its worker is not charged to it."""
    undecided = [one for one in held if one.crash_limit is None]
    charged = _charged(undecided) if undecided else {}
    return {one: charged.get(one, 0) if one.crash_limit is None else one.crash_limit for one in held}


def _charged(held: Sequence[Held]) -> dict[Held, int]:
    """Return the items that the death of their worker is charged to, with the crashes after which each of them fails.

    One whose next crash would be its last ran its first seconds alone, and no other began in these. So if it began last
    and died in these, it is to blame; if another began after it, it had passed them, though the last heartbeat came
    before. Else those are charged that had crashed before, or all of them. Long attempts may be as innocent as a new
    one, if there is one: one of the new is charged too, and the long ones have another three.
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
    """Return the end of an attempt by its worker's death. `limit`: see `_crash_limits`."""
    crashes = held.crashes + 1
    final = 0 < limit <= crashes
    why = f" (worker {worker})"
    if final:
        why += f"; {crashes} deaths are charged to it, so it is not tried again"
    elif not limit:
        why += "; another item of that worker is to blame"
    return Event(
        held.job, held.item, held.attempt, "failed" if final else "retrying", held.elapsed, now, worker,
        failure=_death(why), retry=None if final else Retry(0.0), crashed=limit > 0,
        ran=True,
    )  # fmt: skip


def _death(more: str) -> Failure:
    return Failure("crashed", "WorkerDied", f"its worker died while it was running{more}")
