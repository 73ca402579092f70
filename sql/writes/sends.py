"""Plain sends, and messages of foreign producers."""

from collections.abc import Iterable, Sequence

from callboard.sql.arrays import parameters
from callboard.sql.pool import Conn
from callboard.sql.rows import NewItem
from callboard.sql.statements import execute, fetch_value, lists


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
    conn: Conn, new: Sequence[NewItem], *, publishing: bool, children: Sequence[bool] = ()
) -> list[tuple[int, int | None] | None]:
    """Store items; return of each its number and outbox id, or None if its job takes it not.

    `children`: of each, whether an item of the same job sends it. With `publishing` the sender is to publish those that
    neither wait for their time nor for their job's turn: it holds their claims, and only these have an outbox id.
    """
    if not new:
        return []
    added = execute(conn, "add_items", **parameters(NewItem, new), child=list(children), publishing=publishing)
    places = {nth: (item, outbox) for nth, item, outbox in added}
    return [places.get(nth) for nth in range(1, len(new) + 1)]
