"""Where plain sends go: into the job they name, or into their actor's standing job of the day."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import psycopg

from callboard.middleware.journal.journal import Send, Uncertain
from callboard.middleware.process.process import Process
from callboard.sql.pool import Conn
from callboard.sql.rows import NewItem, Outgoing
from callboard.sql.writes.jobs import lock_jobs
from callboard.sql.writes.sends import add_items, earlier_items, items_by_key, standing_job


class JobClosed(RuntimeError):
    """The job takes no more items: it is sealed, or it was stopped."""


@dataclass(slots=True)
class SendStore:
    """Stores what plain sends wait for, one transaction for all of them.

    Those that this process can publish itself are stored with its claim.
    """

    process: Process
    _standing: dict[str, int] = field(default_factory=dict)

    def store(self, conn: Conn, sends: Sequence[Send]) -> None:
        """Store each send and answer it: as stored, or with JobClosed."""
        _recognise(conn, [send for send in sends if not send.stored.done()])
        # A standing job that is cached may have been sealed at midnight: then it is looked up anew, once.
        closed = self._store(conn, [send for send in sends if not send.stored.done()])
        again = [send for send in closed if send.item.job == 0]
        for send in again:
            self._standing.pop(send.item.actor, None)
        refused = [send for send in closed if send.item.job != 0] + (
            self._store(conn, again) if again else []
        )
        for send in refused:
            send.stored.set_exception(JobClosed("the job takes no more items: it is sealed or was stopped"))

    def _store(self, conn: Conn, sends: Sequence[Send]) -> list[Send]:
        named = [(send, replace(send.item, job=self._job_of(conn, send.item))) for send in sends]
        committing = False
        try:
            with conn.transaction():
                jobs = lock_jobs(conn, (item.job for _, item in named))
                open_ = [(send, item) for send, item in named if jobs.get(item.job, (0, False))[1]]
                present = _present(conn, [item for _, item in open_])
                numbered = _number(open_, jobs, present)
                claimed = self._add(conn, numbered, present)
                committing = True
        except psycopg.OperationalError as error:
            if committing:
                raise Uncertain(
                    "the connection broke while it was committed: it may be recorded, and then it runs"
                ) from error
            raise
        for send, number, item in numbered:
            seen = item.key is not None and (item.job, item.key) in present
            send.stored.set_result(_outgoing(item, number, claimed.get((item.job, number)), seen=seen))
        taken = {id(send) for send, _ in open_}
        return [send for send in sends if id(send) not in taken]

    def _add(
        self, conn: Conn, numbered: Sequence[tuple[Send, int, NewItem]], present: dict[tuple[int, str], int]
    ) -> dict[tuple[int, int], int]:
        """Store what isn't there yet; the outbox rows that this process holds the claim of."""
        new = {(i.job, n): (n, i) for _, n, i in numbered if i.key is None or (i.job, i.key) not in present}
        return add_items(conn, list(new.values()), publishing=self.process.publishes) if new else {}

    def _job_of(self, conn: Conn, item: NewItem) -> int:
        if item.job:
            return item.job
        if item.actor not in self._standing:
            self._standing[item.actor] = standing_job(conn, item.actor, item.queue)
        return self._standing[item.actor]


def _recognise(conn: Conn, sends: Sequence[Send]) -> None:
    """Answer the messages that came before midnight, and were recorded then, by the item that they are."""
    keyed = {send.item.key: send for send in sends if send.item.key is not None and send.item.job == 0}
    earlier = earlier_items(conn, [(s.item.actor, k) for k, s in keyed.items()]) if keyed else {}
    for send in sends:
        if send.item.key in earlier:
            job, number = earlier[send.item.key]
            send.stored.set_result(_outgoing(replace(send.item, job=job), number, None, seen=True))


def _present(conn: Conn, items: Sequence[NewItem]) -> dict[tuple[int, str], int]:
    keys = [(item.job, item.key) for item in items if item.key is not None]
    return items_by_key(conn, keys) if keys else {}


def _number(
    sends: Sequence[tuple[Send, NewItem]],
    jobs: dict[int, tuple[int, bool]],
    present: dict[tuple[int, str], int],
) -> list[tuple[Send, int, NewItem]]:
    """Number items from their job's total; two sends of one item key get one number."""
    next_number = {job: total for job, (total, _) in jobs.items()}
    fresh: dict[tuple[int, str], int] = {}
    numbered = []
    for send, item in sends:
        known = (
            None if item.key is None else present.get((item.job, item.key), fresh.get((item.job, item.key)))
        )
        if known is None:
            known = next_number[item.job]
            next_number[item.job] += 1
            if item.key is not None:
                fresh[item.job, item.key] = known
        numbered.append((send, known, item))
    return numbered


def _outgoing(item: NewItem, number: int, outbox: int | None, *, seen: bool) -> Outgoing:
    return Outgoing(
        item.job, number, 1, 0, seen, item.actor, item.queue, item.message_id, item.args, item.options,
        item.sent_ms, outbox=outbox,
    )  # fmt: skip
