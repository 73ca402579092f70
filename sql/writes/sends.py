"""Plain sends, and messages of foreign producers."""

from collections.abc import Sequence

from callboard.sql import timings
from callboard.sql.arrays import parameters
from callboard.sql.pool import Conn
from callboard.sql.rows import NewItem
from callboard.sql.statements import statement


def standing_job(conn: Conn, actor: str, queue: str) -> int:
    """Return the standing job of an actor for today (UTC); make it when there is none."""
    row = conn.execute(statement("standing_job"), {"actor": actor, "queue": queue}).fetchone()
    # Another transaction may insert it between this statement's two halves; it is there for the next look.
    return int(row[0]) if row else standing_job(conn, actor, queue)


def items_by_key(conn: Conn, keys: Sequence[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Return those of these (job, item key) that exist, with their items."""
    rows = conn.execute(statement("items_by_key"), {"job": [k[0] for k in keys], "key": [k[1] for k in keys]})
    return {(row[0], row[1]): row[2] for row in rows}


def items_of_earlier_days(conn: Conn, keys: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return those of these (actor, item key) in standing jobs of earlier days: {item key: (job, item)}."""
    parameters = {"actor": [actor for actor, _ in keys], "key": [key for _, key in keys]}
    return {row[0]: (row[1], row[2]) for row in conn.execute(statement("items_of_earlier_days"), parameters)}


def add_items(
    conn: Conn, new: Sequence[NewItem], *, publishing: bool, children: Sequence[bool] = ()
) -> list[tuple[int, int | None] | None]:
    """Store items; return of each its number and outbox id, or None if its job takes it not.

    `children`: of each, whether an item of the same job sends it. With `publishing` the sender is to publish those that
    neither wait for their time nor for their job's turn: it holds their claims, and only these have an outbox id.
    """
    if not new:
        return []
    rows = conn.execute(
        statement("add_items"),
        {
            **parameters(NewItem, new),
            "child": list(children),
            "publishing": publishing,
            "lease": timings.PUBLISH_LEASE_SECONDS,
            "lock_wait": f"{timings.SEND_LOCK_WAIT_SECONDS * 1000:.0f}ms",
        },
    )
    places = {nth: (item, outbox) for nth, item, outbox in rows}
    return [places.get(nth) for nth in range(1, len(new) + 1)]
