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
    conn: Conn, new: Sequence[tuple[int, NewItem]], *, publishing: bool
) -> dict[tuple[int, int], int]:
    """Store items under the numbers given; returns the outbox ids {(job, item): id} of those that their sender is to
    publish, and holds the claim of: with `publishing` those that neither wait for their time nor for their job's turn.
    """
    rows = conn.execute(
        statement("add_items"),
        {
            **parameters(NewItem, [item for _, item in new]),
            "item": [number for number, _ in new],
            "publishing": publishing,
            "lease": timings.PUBLISH_LEASE_SECONDS,
        },
    )
    return {(job, item): outbox for job, item, outbox, claimed in rows if claimed}
