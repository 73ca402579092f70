"""Callbacks that the ends of jobs queued: any process claims, delivers or postpones them."""

from collections.abc import Sequence

from callboard.sql.pool import Conn
from callboard.sql.rows import Callback
from callboard.sql.statements import fetch, fetch_value, gives_row

#: Tries after which a callback is given up: about a day, see `retry_pause` of `middleware/callbacks/dispatcher.py`.
MAX_TRIES = 40


def claim_callbacks(
    conn: Conn, *, webhooks: bool, limit: int, full: Sequence[str] = (), after: Callback | None = None
) -> list[Callback]:
    """Claim callbacks that are due, webhooks or messages, but no webhook of the hosts that are `full`, in the order of
    hosts and tenants: of those that come `after` that of another callback (None: of all). A claim counts as a try.
    """
    # Nothing lies between a name and that name with the least of all bytes behind it; that byte is before each host.
    turn = ("\x01" if webhooks else "", "") if after is None else (after.host or "", after.tenant + "\x01")
    found = fetch(
        conn, Callback, "claim_callbacks", webhooks=webhooks, limit=limit, full=list(full), host=turn[0], tenant=turn[1]
    )
    return sorted(found, key=lambda one: (one.host or "", one.tenant))


def mark_delivered(conn: Conn, callback: Callback) -> bool:
    """Record that a callback is delivered; return False when it was before, or its job is deleted."""
    return gives_row(conn, "mark_delivered", id=callback.id)


def postpone_callback(conn: Conn, callback: Callback, error: str, *, pause: float, last: bool) -> bool:
    """Record a failed try: the next is in `pause` seconds, unless this is the `last`. Return whether it is given up."""
    last = last or callback.tries >= MAX_TRIES
    claim = {"id": callback.id, "tries": callback.tries}
    return bool(fetch_value(conn, "postpone_callback", **claim, error=error, pause=pause, last=last))
