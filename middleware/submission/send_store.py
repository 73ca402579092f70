"""Stores plain sends in the job that they name, or in their actor's standing job of the day."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import psycopg

from callboard.middleware.journal.journal import Send, UncertainCommit
from callboard.middleware.process.process import Process
from callboard.middleware.publish.send_leases import SendLeases
from callboard.sql.errors import may_be_committed
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import NewItem, Outgoing
from callboard.sql.writes.sends import add_items, items_by_key, lock_for_keys, standing_job


class JobClosed(RuntimeError):
    """The job takes no more items: it is sealed, or it was stopped."""


@dataclass(slots=True)
class SendStore:
    """Stores plain sends of this process, many in one transaction. `publish` is called for each send that is stored
    under a lease, because its sender may have timed out by then.
    """

    process: Process
    leases: SendLeases
    publish: Callable[[Outgoing], None]
    _standing: dict[str, int] = field(default_factory=dict)  # by actor

    def store(self, conn: Conn, sends: Sequence[Send]) -> None:
        """Store each waiting send, and resolve its future: with the message to publish, or with JobClosed."""
        closed = self._store(conn, [send for send in sends if not send.stored.done()])
        # A standing job may have been sealed at midnight since it was cached: look it up once more.
        again = [send for send in closed if send.item.job == 0]
        for send in again:
            self._standing.pop(send.item.actor, None)
        refused = [send for send in closed if send.item.job != 0]
        if again:
            refused += self._store(conn, again)
        for send in refused:
            of = f"job {send.item.job} takes no more items, so {send.item.actor} is not sent to it"
            send.stored.set_exception(JobClosed(f"{of}: it is sealed or was stopped"))

    def _store(self, conn: Conn, sends: Sequence[Send]) -> list[Send]:
        """Store the sends whose job is open; return the others. Without item keys this takes one statement."""
        named, copies = _first_per_key([(send, replace(send.item, job=self._job(conn, send.item))) for send in sends])
        began = time.monotonic()
        with self.leases.joining({item.job for _, item in named}) as leases:
            known, new, added = self._add(conn, named, leases)
            for (_, item), place in zip(new, added, strict=True):
                if place is not None:
                    self.leases.add(place[1], item.job, began)
        for send, item in named:
            if (stored := known.get((item.actor, item.key or ""))) is not None:
                _resolve(send, *stored, None, seen=True)
        for (send, item), place in zip(new, added, strict=True):
            if place is not None and (out := _resolve(send, item.job, *place)).lease is not None:
                self.publish(out)
        closed = [send for send, _ in named if not send.stored.done()]
        return closed + self._store(conn, copies) if copies else closed

    def _add(
        self, conn: Conn, named: Sequence[tuple[Send, NewItem]], leases: Sequence[int]
    ) -> tuple[dict[tuple[str, str], tuple[int, int]], list[tuple[Send, NewItem]], list[tuple[int, int | None] | None]]:
        """Store items. Returns the (job, number) of items that were stored before, by (actor, item key); the other
        items; and the results of `add_items` for these.
        """
        keys = [(item.actor, item.key, item.job, send.redelivered) for send, item in named if item.key is not None]
        known: dict[tuple[str, str], tuple[int, int]] = {}
        adding = False
        try:
            with transaction(conn) if keys else nullcontext():
                if keys:
                    # A separate statement after the lock: it sees all keys that the jobs have.
                    lock_for_keys(conn, (item.job for _, item in named), (actor for actor, *_ in keys))
                    known = items_by_key(conn, keys)
                new = [(send, item) for send, item in named if (item.actor, item.key or "") not in known]
                adding = True
                added = add_items(
                    conn, [item for _, item in new], publishing=self.process.publishes,
                    children=[send.child for send, _ in new], leases=leases,
                )  # fmt: skip
        except psycopg.OperationalError as error:
            if adding and may_be_committed(error):
                raise UncertainCommit("the connection broke while it was committed") from error
            raise
        return known, new, added

    def _job(self, conn: Conn, item: NewItem) -> int:
        if item.job:
            return item.job
        if item.actor not in self._standing:
            self._standing[item.actor] = standing_job(conn, item.actor, item.queue)
        return self._standing[item.actor]


def _first_per_key(named: Iterable[tuple[Send, NewItem]]) -> tuple[list[tuple[Send, NewItem]], list[Send]]:
    """Return the first send of each job and item key, and the duplicates."""
    keys: set[tuple[int, str]] = set()
    first, copies = [], []
    for send, item in named:
        if item.key is not None and (item.job, item.key) in keys:
            copies.append(send)
            continue
        first.append((send, item))
        if item.key is not None:
            keys.add((item.job, item.key))
    return first, copies


def _resolve(send: Send, job: int, number: int, lease: int | None, *, seen: bool = False) -> Outgoing:
    """Give a sender its item's message, and return it. `seen`: the item was stored before."""
    item = send.item
    out = Outgoing(
        job, number, 1, 0, seen, item.actor, item.queue, item.message_id, item.args, item.options, item.sent_ms,
        standing=item.job == 0, lease=lease,
    )  # fmt: skip
    send.stored.set_result(out)
    return out
