"""Plain sends, and messages of foreign producers."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from psycopg.errors import LockNotAvailable

from callboard.sql import timings
from callboard.sql.arrays import array, parameters
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import NewItem, Outgoing
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_value, lists

#: Jobs whose lapsed leases one round of the sweep ends, and seconds for which it waits for a lock of one.
LAPSED_JOBS, LAPSED_WAIT_SECONDS = 50, 0.1


def standing_job(conn: Conn, actor: str, queue: str) -> int:
    """Return the standing job of an actor for today (UTC); make it when there is none."""
    job: int | None = fetch_value(conn, "standing_job", actor=actor, queue=queue)
    # Another transaction may insert it between this statement's two halves; it is there for the next look.
    return standing_job(conn, actor, queue) if job is None else job


def lock_for_keys(conn: Conn, jobs: Iterable[int], actors: Iterable[str]) -> None:
    """Lock jobs that are about to get items with keys, and the standing jobs of these actors that take items."""
    execute(conn, "lock_for_keys", jobs=sorted(set(jobs)), actors=sorted(set(actors)))


def items_by_key(conn: Conn, keys: Sequence[tuple[str, str, int, bool]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return which of these messages, each (actor, item key, job to add it to, whether it was redelivered), standing
    jobs have as items: {(actor, item key): (job, item)}.
    """
    found = execute(conn, "items_by_key", **lists("actor key job redelivered", keys))
    return {(actor, key): (job, item) for actor, key, job, item in found}


def add_items(
    conn: Conn, new: Sequence[NewItem], *, publishing: bool, children: Sequence[bool] = (), leases: Sequence[int] = ()
) -> list[tuple[int, int | None] | None]:
    """Store items; return the number and the lease of each, or None for one that its job does not take.

    `children`: of each, whether an item of the same job sends it. With `publishing` the sender is to publish those that
    neither wait for their time nor for their job's turn: only these have a lease, one of `leases` or a new one.
    """
    if not new:
        return []
    if len(new) == 1 and publishing and leases and not (new[0].delay or new[0].published):
        child = bool(children and children[0])
        if (item := _add_item(conn, new[0], child=child, lease=leases[0])) is not None:
            return [(item, leases[0])]
    given = {"child": array("bool", children), "publishing": publishing, "leases": array("int", leases)}
    added = execute(conn, "add_items", **parameters(NewItem, new), **given)
    places = {nth: (item, lease) for nth, item, lease in added}
    return [places.get(nth) for nth in range(1, len(new) + 1)]


def _add_item(conn: Conn, new: NewItem, *, child: bool, lease: int) -> int | None:
    """Store an item under a lease; return its number, or None if `add_items` is to decide what becomes of it."""
    item: int | None = fetch_value(
        conn, "add_item", job=new.job, actor=new.actor, queue=new.queue, message_id=new.message_id, args=new.args,
        options=new.options, sent_ms=new.sent_ms, key=new.key, child=child, lease=lease,
    )  # fmt: skip
    return item


def renew_send_leases(conn: Conn, leases: Collection[int]) -> list[int]:
    """Have leases hold for longer; return those that do."""
    return fetch_ids(conn, "renew_send_leases", leases=list(leases))


def end_send_leases(conn: Conn, leases: Collection[int]) -> list[int]:
    """End leases: nothing that was sent under them is left to publish. Return those that are not ended, since another
    transaction has locked them.
    """
    return fetch_ids(conn, "end_send_leases", leases=list(leases))


def queue_sends(conn: Conn, sent: Collection[Outgoing], *, pause: float = 0.0, tried: bool = True) -> None:
    """Put sends into the outbox that were not confirmed, or were not `tried`; they are due in `pause` seconds. Raises
    psycopg.errors.LockNotAvailable.
    """
    stretches = sorted((out.job, out.item, out.item + 1) for out in sent)
    leases = list({out.lease for out in sent})
    with transaction(conn, timings.LOCK_WAIT_SECONDS):
        _queue(conn, stretches, leases, pause=pause, tried=tried)


def lapsed_send_leases(conn: Conn) -> list[tuple[int, list[int]]]:
    """Return the leases of processes that vanished, of some jobs: (job, leases)."""
    return fetch(conn, lambda *row: row, "lapsed_send_leases", limit=LAPSED_JOBS)


def queue_lapsed_sends(conn: Conn, job: int, leases: Sequence[int]) -> bool:
    """End lapsed leases of a job, and put what their processes may not have published into the outbox; return False if
    another transaction has locked some of it.
    """
    with suppress(LockNotAvailable), transaction(conn, LAPSED_WAIT_SECONDS):
        ended, first = execute(conn, "end_lapsed_send_leases", leases=list(leases)).fetchone() or (None, 0)
        if ended:
            _queue(conn, [(job, first, timings.MAX_ITEM + 1)], ended, pause=0.0, tried=True)
        return True
    return False


def _queue(
    conn: Conn, stretches: Sequence[tuple[int, int, int]], leases: Sequence[int | None], *, pause: float, tried: bool
) -> None:
    """Put what was stored under these leases into the outbox, in stretches of items: (job, first, after the last)."""
    given = lists("job low high", stretches)
    execute(conn, "queue_sends", **given, leases=list(leases), pause=pause, tried=tried)
