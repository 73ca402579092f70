"""Parks messages that must not run now: moves them from the broker to the outbox, to be published again later.

A message of a paused job waits until the job is resumed. A message that was given back waits for the turn of its job. A
dead letter that somebody moved back to its queue becomes another attempt at its item.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from psycopg.errors import LockNotAvailable

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.delivery import release
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import Process, Stopping
from callboard.middleware.process.side_thread import SideThread
from callboard.sql import timings
from callboard.sql.pool import Conn, transaction
from callboard.sql.writes.outcomes import locked_jobs
from callboard.sql.writes.requests import NoSuchJob, NotPossible, Requester
from callboard.sql.writes.retry_action import RetrySelection, retry

log = logging.getLogger("callboard.tracking")
_log_outage = OutageLog(log, "messages that must not run now wait for the database: %s")

#: Messages that are parked in one transaction.
BATCH_MESSAGES = 1_000
#: Seconds until the messages of locked jobs are parked again.
LOCKED_PAUSE_SECONDS = 0.25
#: The requester of the retry in the job's history.
MOVED_BACK = Requester("worker", "dead letters moved back")

#: Job, item and number of an attempt.
Key: TypeAlias = tuple[int, int, int]


class NotKept(NamedTuple):
    """The attempts that are refused, and those that wait because another transaction has locked one of their rows."""

    refused: Collection[Key] = ()
    locked: Collection[Key] = ()


class Parking:
    """Stores messages in the outbox, then acknowledges them, in a side thread. Worker threads go on with other
    messages.

    `keep` puts attempts into the outbox, and returns those that it does not keep, or None if it keeps all. The messages
    of refused attempts are rejected. `keep` raises psycopg.errors.LockNotAvailable if a locked row keeps it from
    storing any. Attempts of a job that another transaction has locked wait until that ends; the others are stored. A
    message that is not stored before the process stops is not acknowledged, so it is redelivered. `kept` is called
    after each transaction.
    """

    def __init__(
        self, process: Process, keep: Callable[[Conn, Sequence[Key]], NotKept | None], kept: Callable[[], None]
    ) -> None:
        self._process = process
        self._keep = keep
        self._kept = kept
        self._waiting: deque[Attempt] = deque()
        self._side_thread = SideThread("parking")

    def park(self, attempt: Attempt) -> None:
        """Park an attempt that has not begun; its deliveries must be deferred."""
        self._waiting.append(attempt)
        self._side_thread.run(self._park_waiting)

    @property
    def put_off(self) -> list[Attempt]:
        """The attempts of jobs that another transaction has locked."""
        return [attempt for attempt in self._waiting.copy() if attempt.put_off]

    def _park_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MESSAGES))]
        if not batch:
            return
        try:
            kept, refused = self._process.retry_write(lambda conn: self._keep_unlocked(conn, batch), _log_outage)
        except Stopping:
            return
        release((delivery, _key(attempt) in refused) for attempt in kept for delivery in attempt.deliveries)
        self._kept()
        if len(kept) < len(batch) and not self._process.stopping:
            self._put_off(set(batch).difference(kept))

    def _keep_unlocked(self, conn: Conn, batch: Sequence[Attempt]) -> tuple[Sequence[Attempt], Collection[Key]]:
        """Store the attempts of jobs that no other transaction has locked; return these, and the keys of the refused
        ones.
        """
        batch = _unlocked(conn, batch, {attempt.job for attempt in batch if attempt.put_off})
        for last in (False, True):
            try:
                found = (self._keep(conn, [_key(a) for a in batch]) if batch else None) or NotKept()
                return [a for a in batch if _key(a) not in found.locked], found.refused
            except LockNotAvailable:
                batch = [] if last else _unlocked(conn, batch, {attempt.job for attempt in batch})
        return [], ()

    def _put_off(self, attempts: Collection[Attempt]) -> None:
        for attempt in attempts:
            attempt.put_off = True
        self._waiting += attempts
        time.sleep(LOCKED_PAUSE_SECONDS)
        self._side_thread.run(self._park_waiting)


def _unlocked(conn: Conn, attempts: Sequence[Attempt], jobs: Collection[int]) -> Sequence[Attempt]:
    """Return the attempts without those of `jobs` that another transaction has locked."""
    asked = [attempt.key for attempt in attempts if attempt.job in jobs]
    locked = locked_jobs(conn, asked) if asked else ()
    return [attempt for attempt in attempts if attempt.job not in locked]


def _key(attempt: Attempt) -> Key:
    return (*attempt.key, attempt.number)


def retry_moved_back(conn: Conn, keys: Sequence[Key]) -> NotKept:
    """Retry the failed items of dead letters that were moved back; see `Parking`.

    If another transaction has locked a row of the job, its items wait; they are not refused.
    """
    refused: list[Key] = []
    locked: list[Key] = []
    for job, found in groupby(sorted(keys), itemgetter(0)):
        of_job = list(found)
        try:
            with transaction(conn, timings.LOCK_WAIT_SECONDS):
                retry(conn, job, MOVED_BACK, RetrySelection(["failed"], [item for _, item, _ in of_job]))
        except LockNotAvailable:
            locked += of_job
        except (NoSuchJob, NotPossible) as error:
            log.warning("%d dead letters of job %d were moved back, and stay dead letters: %s", len(of_job), job, error)
            refused += of_job
    return NotKept(refused, locked)
