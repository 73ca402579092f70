"""Claims of the items of suspect messages, and messages that wait for another worker or for a paused job."""

import time
from collections.abc import Iterable

from callboard.sql import settings
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import Claim
from callboard.sql.statements import execute, fetch_one, fetch_value, lists

#: The most messages that are examined of an actor that no worker has announced, and the most that one call makes due of
#: other actors.
OLDEST_AWAITING, WOKEN_MESSAGES = 50, 20_000
#: Seconds after which the sweep stops here, because its lease is valid for only some seconds.
LOOKS_SECONDS = 1.0


def claim_item(conn: Conn, job: int, item: int, attempt: int, worker: int, *, alone: bool = False) -> Claim | None:
    """Claim a suspect message's item for `worker`, if it may run. An item that would fail by its next crash is claimed
    only if it runs `alone`. None when the database has no such item.
    """
    return fetch_one(conn, Claim, "claim_item", job=job, item=item, attempt=attempt, worker=worker, alone=alone)


def release_item(conn: Conn, job: int, item: int, attempt: int, worker: int) -> None:
    """Release the claim of an item that does not run yet. Raises LockNotAvailable."""
    execute(conn, "release_item", job=job, item=item, attempt=attempt, worker=worker)


def postpone(conn: Conn, job: int, item: int, attempt: int, actor: str) -> bool:
    """Postpone a message until a worker has its actor; return False when its item must fail, because no worker has
    announced that actor for too long.
    """
    actor_wait = settings.ACTOR_WAIT.get()
    return not fetch_value(conn, "postpone", job=job, item=item, attempt=attempt, actor=actor, actor_wait=actor_wait)


def make_postponed_due(conn: Conn) -> None:
    """Make postponed messages due whose actor a live worker has, or no worker has announced for too long; only some of
    them if there are many.
    """
    sizes = {"limit": OLDEST_AWAITING, "batch": WOKEN_MESSAGES}
    actor_wait, until = settings.ACTOR_WAIT.get(), time.monotonic() + LOOKS_SECONDS
    while True:
        due = execute(conn, "make_postponed_due", actor_wait=actor_wait, **sizes)
        if due.rowcount < OLDEST_AWAITING or time.monotonic() >= until:
            return


def park(conn: Conn, messages: Iterable[tuple[int, int, int]]) -> None:
    """Put messages of paused jobs, (job, item, attempt), into the outbox, to be published when their job is resumed."""
    parked = lists("job item attempt", sorted(set(messages)))
    with transaction(conn):
        execute(conn, "lock_parked", **parked)
        execute(conn, "park", **parked)
