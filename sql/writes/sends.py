"""Plain sends, and messages of foreign producers."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from psycopg.errors import LockNotAvailable

from callboard.sql.arrays import parameters
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import NewItem, Outgoing
from callboard.sql.statements import execute, fetch_ids, fetch_value, lists
from callboard.sql.timings import MAX_ITEM

#: Leases of processes that vanished that one round of the sweep ends.
LAPSED_LEASES = 100


def standing_job(conn: Conn, actor: str, queue: str) -> int:
    """Return the standing job of an actor for today (UTC); make it when there is none."""
    job: int | None = fetch_value(conn, "standing_job", actor=actor, queue=queue)
    # Another transaction may insert it between this statement's two halves; it is there for the next look.
    return standing_job(conn, actor, queue) if job is None else job


def lock_for_keys(conn: Conn, jobs: Iterable[int], actors: Iterable[str]) -> None:
    """Lock jobs that are about to get items with keys, and the standing jobs of these actors that take items."""
    execute(conn, "lock_for_keys", jobs=sorted(set(jobs)), actors=sorted(set(actors)))


def items_by_key(conn: Conn, keys: Sequence[tuple[str, str, int, bool]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return those of these (actor, item key, job to add it to, whether its message was redelivered) that standing jobs
    have, with their items: {(actor, item key): (job, item)}.
    """
    found = execute(conn, "items_by_key", **lists("actor key job redelivered", keys))
    return {(actor, key): (job, item) for actor, key, job, item in found}


def add_items(
    conn: Conn, new: Sequence[NewItem], *, publishing: bool, children: Sequence[bool] = (), leases: Sequence[int] = ()
) -> list[tuple[int, int | None] | None]:
    """Store items; return of each its number and lease, or None if its job takes it not.

    `children`: of each, whether an item of the same job sends it. With `publishing` the sender is to publish those that
    neither wait for their time nor for their job's turn: only these have a lease, one of `leases` or a new one.
    """
    if not new:
        return []
    given = {"child": list(children), "publishing": publishing, "leases": list(leases)}
    added = execute(conn, "add_items", **parameters(NewItem, new), **given)
    places = {nth: (item, lease) for nth, item, lease in added}
    return [places.get(nth) for nth in range(1, len(new) + 1)]


def renew_send_leases(conn: Conn, leases: Collection[int]) -> list[int]:
    """Have leases hold for longer; return those that do."""
    return fetch_ids(conn, "renew_send_leases", leases=list(leases))


def end_send_leases(conn: Conn, leases: Collection[int]) -> None:
    """End leases: nothing that was sent under them is left to publish."""
    execute(conn, "end_send_leases", leases=list(leases))


def queue_sends(conn: Conn, sent: Iterable[Outgoing], *, pause: float = 0.0, tried: bool = True) -> None:
    """Put sends into the outbox that were not confirmed, or were not `tried`; they are due in `pause` seconds."""
    _queue(conn, [(out.job, out.item, out.item + 1, out.lease or 0) for out in sent], pause=pause, tried=tried)


def queue_lapsed_sends(conn: Conn) -> int:
    """End the leases of processes that vanished, and put what they may not have published into the outbox; return how
    many leases that were. Those of a job that another transaction has locked stay for the next time.
    """
    return sum(_queue_lapsed(conn, lease) for lease in fetch_ids(conn, "lapsed_send_leases", limit=LAPSED_LEASES))


def _queue_lapsed(conn: Conn, lease: int) -> bool:
    with suppress(LockNotAvailable), transaction(conn):
        for job, first in execute(conn, "end_lapsed_send_lease", lease=lease):
            _queue(conn, [(job, first, MAX_ITEM + 1, lease)], pause=0.0, tried=True)
            return True
    return False


def _queue(conn: Conn, stretches: Iterable[tuple[int, int, int, int]], *, pause: float, tried: bool) -> None:
    """Put what was stored into the outbox, in stretches of items: (job, the first, after the last, lease)."""
    execute(conn, "queue_sends", **lists("job low high lease", sorted(stretches)), pause=pause, tried=tried)
