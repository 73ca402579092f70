"""The callbacks of ended jobs: any process claims, delivers or postpones them."""

from collections.abc import Sequence

from callboard.sql.pool import Conn
from callboard.sql.rows import Callback
from callboard.sql.statements import fetch, fetch_value, gives_row

#: Tries after which a callback is given up, after about a day: see `retry_pause` in
#: `middleware/callbacks/dispatcher.py`.
MAX_TRIES = 40


def claim_callbacks(
    conn: Conn, *, webhooks: bool, limit: int, full: Sequence[str] = (), after: Callback | None = None
) -> list[Callback]:
    """Claim due callbacks, webhooks or messages, in the order of hosts and tenants; no webhooks to `full` hosts.
    `after`: only those whose host and tenant come after those of this callback (None: all). A claim counts as a try.
    """
    # A name with the lowest byte appended is the next text after the name. The lowest byte alone comes before every
    # host.
    turn = ("\x01" if webhooks else "", "") if after is None else (after.host or "", after.tenant + "\x01")
    found = fetch(
        conn, Callback, "claim_callbacks", webhooks=webhooks, limit=limit, full=list(full), host=turn[0], tenant=turn[1]
    )
    return sorted(found, key=lambda one: (one.host or "", one.tenant))


def mark_delivered(conn: Conn, callback: Callback) -> bool:
    """Record that a callback is delivered; return False when it was already, or its job is deleted."""
    return gives_row(conn, "mark_delivered", id=callback.id)


def postpone_callback(conn: Conn, callback: Callback, error: str, *, pause: float, last: bool) -> bool:
    """Record a failed try; the next is in `pause` seconds, unless this is the `last`. Return whether it is given up."""
    last = last or callback.tries >= MAX_TRIES
    claim = {"id": callback.id, "tries": callback.tries}
    return bool(fetch_value(conn, "postpone_callback", **claim, error=error, pause=pause, last=last))
