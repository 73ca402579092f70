"""Plain sends, and messages of foreign producers."""

from collections.abc import Sequence

from callboard.sql.arrays import parameters
from callboard.sql.pool import Conn
from callboard.sql.rows import NewItem
from callboard.sql.statements import execute, fetch_value, lists


def standing_job(conn: Conn, actor: str, queue: str) -> int:
    """Return the standing job of an actor for today (UTC); make it when there is none."""
    job: int | None = fetch_value(conn, "standing_job", actor=actor, queue=queue)
    # Another transaction may insert it between this statement's two halves; it is there for the next look.
    return standing_job(conn, actor, queue) if job is None else job


def items_by_key(conn: Conn, keys: Sequence[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Return those of these (job, item key) that exist, with their items."""
    return {(job, key): item for job, key, item in execute(conn, "items_by_key", **lists("job key", keys))}


def items_of_earlier_days(conn: Conn, keys: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return those of these (actor, item key) in standing jobs of earlier days: {item key: (job, item)}."""
    found = execute(conn, "items_of_earlier_days", **lists("actor key", keys))
    return {key: (job, item) for key, job, item in found}


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
