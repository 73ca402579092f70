"""The publisher: one thread per process, which publishes stored items as soon as their queue has room.

Each process may publish any job. It claims a job's next batch; a claim expires without a release.
"""

import logging
import math
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.journal.hang_detector import place_of
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import Process
from callboard.middleware.publish.backlog import QueueBacklogs
from callboard.middleware.publish.relay import OUTBOX_BATCH_MESSAGES, Relay
from callboard.middleware.publish.send_leases import SendLeases
from callboard.middleware.publish.transport import Transport, Unreachable
from callboard.sql.rows import Outgoing

log = logging.getLogger("callboard.publisher")
_log_outage = OutageLog(
    log, "publishing is held up; it is tried again, and nothing is lost: %s", "publishing goes on again, after %.1f s"
)

#: Seconds between two polls for work when the last one found none. Second: seconds between two checks of the broker's
#: connection in a process that does not poll, because it only sends or is idle.
POLL_SECONDS = 0.20
SENDER_POLL_SECONDS = 5.0
#: Seconds between two polls of a full queue. Short, because the backlog must hold what the workers take between two
#: polls, and all of it runs before a job that is submitted now.
FULL_QUEUE_POLL_SECONDS = 0.03
#: Seconds after which a round counts as a standstill. A round publishes several batches, and each waits for its
#: confirms.
STANDSTILL_SECONDS = 60.0
#: Seconds between two rounds of messages that this process sent: messages gather, and the sending threads can run.
GATHER_SECONDS = 0.02
#: Seconds for which a closing publisher waits for a database connection.
CLOSE_SECONDS = 2.0


@dataclass(slots=True)
class Publisher:
    """See the module. Only the publisher's thread uses `transport`; `backlogs` uses it in that thread, too."""

    process: Process
    transport: Transport
    backlogs: QueueBacklogs
    leases: SendLeases
    batches: int = 0  # rounds that published something
    _added: deque[Outgoing] = field(default_factory=deque)
    _jobs: list[int] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _rounds: threading.Lock = field(default_factory=threading.Lock)  # held in each round, from `_take_added` on
    _relay: Relay = field(init=False)
    _thread: threading.Thread | None = None
    _closing: bool = False
    _polls: bool = False
    _looks: bool = True  # the next round queries the database for due work
    _poll_at: float = math.inf  # monotonic
    _round_began: float = math.inf  # monotonic

    def __post_init__(self) -> None:
        self._relay = Relay(self.transport, self.backlogs, self.leases)

    def start(self) -> None:
        """Poll for work of any process, as a worker does; an idle process polls only when woken. Without `start`, only
        added messages and jobs are published.
        """
        self._polls = True
        with self._changed:
            self._ensure_thread()

    def add(self, out: Outgoing) -> None:
        """Publish a message that this process has stored under a lease."""
        with self._changed:
            self._added.append(out)
            self._ensure_thread()
            self._changed.notify()

    def forget(self, queue: str) -> None:
        """Drop the messages that were added for a queue, and wait until the current round ends, for
        `STANDSTILL_SECONDS` at most.
        """
        with self._changed:
            dropped = [out for out in self._added if out.queue == queue]
            self._added = deque(out for out in self._added if out.queue != queue)
            self.leases.settle(dropped)
        if self._rounds.acquire(timeout=STANDSTILL_SECONDS):
            self._rounds.release()

    def publish_job(self, job: int) -> None:
        """Publish a job's first items at once, as many as its queue has room for."""
        with self._changed:
            self._jobs.append(job)
            self._ensure_thread()
            self._changed.notify()

    def wake(self, after: float) -> None:
        """Poll for work in `after` seconds: an item ended, and its retry is due then, or other items are allowed."""
        with self._changed:
            self._poll_at = min(self._poll_at, time.monotonic() + after)
            self._changed.notify()

    @property
    def trouble(self) -> str | None:
        """The reason why this process can't publish; None when none is known."""
        return self.transport.trouble or self._standstill()

    def _standstill(self) -> str | None:
        """Return which line the thread executes if its round takes too long, else None. Each wait has its own limit."""
        seconds = time.monotonic() - self._round_began
        if seconds < STANDSTILL_SECONDS or self._thread is None:
            return None
        return f"its publisher has stood still for {seconds:.0f} s, at {place_of(self._thread.ident)}"

    def close(self, timeout: float) -> bool:
        """Publish the added messages and jobs, and end the thread; return False after `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # The thread ------------------------------------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="callboard-publisher", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            self._round_began = time.monotonic()
            try:
                # This comes first, so that nothing is claimed while the broker is away.
                self.transport.serve(reconnect=self._polls and not self._closing)
                with self._rounds:
                    worked = self._round(*self._take_added())
                if self.transport.trouble is None:  # a process that only sends connects when it has a message
                    _log_outage.over()
            except (Unreachable, psycopg.Error, PoolTimeout) as error:
                worked = False
                self._hold_up(error)
            except BaseException:  # an encoder of the app's may raise anything
                log.exception("unexpected error in the publisher; it goes on")
                worked = False
                time.sleep(POLL_SECONDS)
            if self._closing and not self._added and not self._jobs:
                self._end()
                return
            if not worked:
                self._wait_for_work()

    def _hold_up(self, error: Exception) -> None:
        """Log the error and pause. Leave the added messages to other processes if the broker can't be reached."""
        _log_outage(error)
        if isinstance(error, Unreachable):
            self._queue_added()
        if not self._closing:
            time.sleep(POLL_SECONDS)

    def _end(self) -> None:
        """Delete the outbox rows of confirmed messages, and end the leases. Without a database all claims lapse."""
        if min(self._relay.settle_at, self.leases.due) < math.inf:
            with suppress(psycopg.Error, PoolTimeout), self.process.pool.connection(CLOSE_SECONDS) as conn:
                self._relay.settle(conn)
                self.leases.maintain(conn, closing=True)
        self.transport.close()

    def _queue_added(self) -> None:
        """Put the added messages into the outbox. Without a database their leases lapse."""
        with self._changed:
            added, self._added = list(self._added), deque()
        if added:
            with (
                suppress(psycopg.Error, PoolTimeout),
                self.leases.publishing(added),
                self.process.pool.connection(CLOSE_SECONDS) as conn,
            ):
                self._relay.queue_sends(conn, added, tried=False)

    def _take_added(self) -> tuple[list[Outgoing], list[int]]:
        with self._changed:
            count = min(len(self._added), OUTBOX_BATCH_MESSAGES)
            added = [self._added.popleft() for _ in range(count)]
            jobs, self._jobs = self._jobs, []
        return self.leases.held(added), jobs

    def _wait_for_work(self) -> None:
        """Wait until a message or job is added, a full queue has room again, or the poll is due."""
        polls = self._polls and (self.transport.trouble is not None or not self.process.idle)
        self._looks = True
        end = time.monotonic() + (POLL_SECONDS if polls else SENDER_POLL_SECONDS)
        end = min(end, self._relay.settle_at, self.leases.due)
        while (left := end - time.monotonic()) > 0:
            full = self.backlogs.queues_to_poll() if self._polls else []
            if self._wait_for_change(min(left, FULL_QUEUE_POLL_SECONDS) if full else left):
                return
            if any(map(self.backlogs.has_room, full)):
                return
        self._looks = polls

    def _wait_for_change(self, seconds: float) -> bool:
        def changed() -> bool:
            return bool(self._added or self._jobs or self._closing or self._poll_at <= time.monotonic())

        end = time.monotonic() + seconds
        with self._changed:
            while not changed() and (left := min(end, self._poll_at) - time.monotonic()) > 0:
                self._changed.wait(left)
            found = changed()
            if self._poll_at <= time.monotonic():
                self._poll_at = math.inf
        return found

    def _round(self, added: list[Outgoing], jobs: list[int]) -> bool:
        """Publish one batch of each kind of work; return whether anything was published."""
        now = time.monotonic()
        settles, maintains = self._relay.settle_at <= now, self.leases.due <= now
        if not (added or jobs or settles or maintains or self._looks):
            return False
        with self.process.pool.connection() as conn:
            # A process that does not poll would never publish the messages that it leaves for later.
            polls = self._polls and not self._closing
            publish = self._relay.publish_sends_with_room if polls else self._relay.publish_sends
            with self.leases.publishing(added):
                worked = bool(added) and publish(conn, added) > 0
            if settles:
                self._relay.settle(conn)
            if maintains:
                self.leases.maintain(conn)
            for job in jobs:
                worked |= bool(self._relay.publish_job(conn, job, []))
            if polls and self._looks:
                worked |= self._relay.publish_due(conn)
        self.batches += worked
        if added and not self._closing:
            time.sleep(GATHER_SECONDS)
        return worked
