"""Plain sends, and messages of producers without Callboard."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from psycopg.errors import LockNotAvailable

from callboard.sql import timings
from callboard.sql.arrays import array, parameters
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import NewItem, Outgoing
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_value, lists

#: The most jobs whose expired leases one round of the sweep ends, and seconds for which it waits for a lock of a job.
LAPSED_JOBS, LAPSED_WAIT_SECONDS = 50, 0.1


def standing_job(conn: Conn, actor: str, queue: str) -> int:
    """Return the standing job of an actor for today (UTC); create it if there is none."""
    job: int | None = fetch_value(conn, "standing_job", actor=actor, queue=queue)
    # Another transaction may insert it between the two halves of the statement; then the next call finds it.
    return standing_job(conn, actor, queue) if job is None else job


def lock_for_keys(conn: Conn, jobs: Iterable[int], actors: Iterable[str]) -> None:
    """Lock jobs that are about to get items with keys, and the open standing jobs of these actors."""
    execute(conn, "lock_for_keys", jobs=sorted(set(jobs)), actors=sorted(set(actors)))


def items_by_key(conn: Conn, keys: Sequence[tuple[str, str, int, bool]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the messages that standing jobs already have as items, as {(actor, item key): (job, item)}. `keys`: each
    message as (actor, item key, job to add it to, whether it was redelivered).
    """
    found = execute(conn, "items_by_key", **lists("actor key job redelivered", keys))
    return {(actor, key): (job, item) for actor, key, job, item in found}


def add_items(
    conn: Conn, new: Sequence[NewItem], *, publishing: bool, children: Sequence[bool] = (), leases: Sequence[int] = ()
) -> list[tuple[int, int | None] | None]:
    """Store items; return (number, lease) of each, or None for an item that its job does not take.

    `children`: for each item, whether an item of the same job sends it. `publishing`: this process publishes the items
    that wait neither for their time nor for their job's turn. Only these get a lease, one of `leases` or a new one.
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
    """Store an item under a lease; return its number, or None if `add_items` must handle it."""
    item: int | None = fetch_value(
        conn, "add_item", job=new.job, actor=new.actor, queue=new.queue, message_id=new.message_id, args=new.args,
        options=new.options, sent_ms=new.sent_ms, key=new.key, child=child, lease=lease,
    )  # fmt: skip
    return item


def renew_send_leases(conn: Conn, leases: Collection[int]) -> list[int]:
    """Renew leases; return those that are renewed."""
    return fetch_ids(conn, "renew_send_leases", leases=list(leases))


def end_send_leases(conn: Conn, leases: Collection[int]) -> list[int]:
    """End leases whose sends are all published; return those that another transaction has locked: they do not end."""
    return fetch_ids(conn, "end_send_leases", leases=list(leases))


def queue_sends(conn: Conn, sent: Collection[Outgoing], *, pause: float = 0.0, tried: bool = True) -> None:
    """Put unconfirmed sends into the outbox, due in `pause` seconds. `tried`: they may have been published. Raises
    psycopg.errors.LockNotAvailable.
    """
    stretches = sorted((out.job, out.item, out.item + 1) for out in sent)
    leases = list({out.lease for out in sent})
    with transaction(conn, timings.LOCK_WAIT_SECONDS):
        _queue(conn, stretches, leases, pause=pause, tried=tried)


def lapsed_send_leases(conn: Conn) -> list[tuple[int, list[int]]]:
    """Return the expired leases of some jobs, as (job, leases): their processes died."""
    return fetch(conn, lambda *row: row, "lapsed_send_leases", limit=LAPSED_JOBS)


def queue_lapsed_sends(conn: Conn, job: int, leases: Sequence[int]) -> bool:
    """End expired leases of a job, and put the sends that may be unpublished into the outbox; return False if another
    transaction has locked some of them.
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
    """Put the sends under these leases into the outbox. `stretches`: ranges of items, (job, first, after the last)."""
    given = lists("job low high", stretches)
    execute(conn, "queue_sends", **given, leases=list(leases), pause=pause, tried=tried)
