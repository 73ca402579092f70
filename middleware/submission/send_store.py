"""Stores plain sends: in the job that they name, or in their actor's standing job of the day."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import psycopg

from callboard.middleware.journal.journal import Send, UncertainCommit
from callboard.middleware.process.process import Process
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import NewItem, Outgoing
from callboard.sql.writes.jobs import lock_jobs
from callboard.sql.writes.sends import add_items, items_by_key, items_of_earlier_days, standing_job


class JobClosed(RuntimeError):
    """The job takes no more items: it is sealed, or it was stopped."""


@dataclass(slots=True)
class SendStore:
    """Stores plain sends of this process, one transaction for many. If the process publishes, it claims their messages
    in the same transaction.
    """

    process: Process
    _standing: dict[str, int] = field(default_factory=dict)  # by actor

    def store(self, conn: Conn, sends: Sequence[Send]) -> None:
        """Store each send that waits, and resolve its future: with the message to publish, or with JobClosed."""
        _resolve_earlier(conn, [send for send in sends if not send.stored.done()])
        closed = self._store(conn, [send for send in sends if not send.stored.done()])
        # A standing job may have been sealed at midnight since it was cached: look it up once more.
        again = [send for send in closed if send.item.job == 0]
        for send in again:
            self._standing.pop(send.item.actor, None)
        refused = [send for send in closed if send.item.job != 0]
        if again:
            refused += self._store(conn, again)
        for send in refused:
            send.stored.set_exception(JobClosed("the job takes no more items: it is sealed or was stopped"))

    def _store(self, conn: Conn, sends: Sequence[Send]) -> list[Send]:
        """Store the sends whose job is open; return the others."""
        named = [(send, replace(send.item, job=self._job(conn, send.item))) for send in sends]
        committing = False
        try:
            with transaction(conn):
                jobs = lock_jobs(conn, (item.job for _, item in named))
                taken = [(s, i) for s, i in named if i.job in jobs and jobs[i.job][2 if s.child else 1]]
                totals = {item.job: jobs[item.job][0] for _, item in taken}
                numbered = _number(conn, taken, totals)
                new = [(number, item) for _, number, item, seen in numbered if not seen]
                claimed = add_items(conn, new, publishing=self.process.publishes) if new else {}
                committing = True
        except psycopg.OperationalError as error:
            if committing:
                raise UncertainCommit("the connection broke while it was committed") from error
            raise
        for send, number, item, seen in numbered:
            outbox = None if seen else claimed.get((item.job, number))
            _resolve(send, item.job, number, outbox, seen=seen)
        return [send for send, _ in named if not send.stored.done()]

    def _job(self, conn: Conn, item: NewItem) -> int:
        if item.job:
            return item.job
        if item.actor not in self._standing:
            self._standing[item.actor] = standing_job(conn, item.actor, item.queue)
        return self._standing[item.actor]


def _resolve_earlier(conn: Conn, sends: Sequence[Send]) -> None:
    """Resolve the sends of messages that a standing job of an earlier day has as items."""
    keyed = {send.item.key: send for send in sends if send.item.key is not None and send.item.job == 0}
    earlier = items_of_earlier_days(conn, [(s.item.actor, k) for k, s in keyed.items()]) if keyed else {}
    for send in sends:
        if send.item.key in earlier:
            _resolve(send, *earlier[send.item.key], None, seen=True)


def _number(
    conn: Conn, sends: Sequence[tuple[Send, NewItem]], totals: dict[int, int]
) -> list[tuple[Send, int, NewItem, bool]]:
    """Number the items from their jobs' totals on; return (send, number, item, whether an item has its key already)."""
    keys = [(item.job, item.key) for _, item in sends if item.key is not None]
    known = items_by_key(conn, keys) if keys else {}
    following = dict(totals)
    numbered = []
    for send, item in sends:
        number = None if item.key is None else known.get((item.job, item.key))
        seen = number is not None
        if number is None:
            number = following[item.job]
            following[item.job] += 1
            if item.key is not None:
                known[item.job, item.key] = number
        numbered.append((send, number, item, seen))
    return numbered


def _resolve(send: Send, job: int, number: int, outbox: int | None, *, seen: bool) -> None:
    """Give a sender its item's message; `outbox`: the claimed row, or None; `seen`: the item was stored before."""
    item = send.item
    out = Outgoing(
        job, number, 1, 0, seen, item.actor, item.queue, item.message_id, item.args, item.options, item.sent_ms,
        outbox=outbox, standing=item.job == 0,
    )  # fmt: skip
    send.stored.set_result(out)
