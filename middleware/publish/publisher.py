"""The publisher: one thread a process, which publishes what is stored as soon as its queue has room.

Each process may publish any job: it claims a job's next batch, and the claim expires by itself.
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

#: Seconds between two polls for work when the last one found none; and between two looks at the broker's connection
#: in a process that does not poll, since it only sends, or is idle.
POLL_SECONDS = 0.20
SENDER_POLL_SECONDS = 5.0
#: Seconds between two polls of a queue that was full. All of its backlog runs before a job that is submitted now, and
#: what its workers take between two polls must lie in it.
FULL_QUEUE_POLL_SECONDS = 0.03
#: Seconds that a round may take until it counts as a standstill: several batches, each of which waits for its confirms.
STANDSTILL_SECONDS = 60.0
#: Seconds between two rounds of messages that this process sent: they gather, and its senders run meanwhile.
GATHER_SECONDS = 0.02
#: Seconds that a publisher waits for a connection when it ends.
CLOSE_SECONDS = 2.0


@dataclass(slots=True)
class Publisher:
    """See the module. The publisher's thread alone uses `transport`, which `backlogs` asks too."""

    process: Process
    transport: Transport
    backlogs: QueueBacklogs
    leases: SendLeases
    batches: int = 0  # of which something was published
    _added: deque[Outgoing] = field(default_factory=deque)
    _jobs: list[int] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _rounds: threading.Lock = field(default_factory=threading.Lock)  # held in each, from what it takes on
    _relay: Relay = field(init=False)
    _thread: threading.Thread | None = None
    _closing: bool = False
    _polls: bool = False
    _looks: bool = True  # in its next round, for what is due
    _poll_at: float = math.inf  # monotonic
    _round_began: float = math.inf  # monotonic

    def __post_init__(self) -> None:
        self._relay = Relay(self.transport, self.backlogs, self.leases)

    def start(self) -> None:
        """Poll for work of any process, as a worker does; while the process is idle, only when woken. Without it, only
        what is added is published.
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
        """Publish none of the messages that were added for a queue, and wait until what is being published is out."""
        with self._changed:
            dropped = [out for out in self._added if out.queue == queue]
            self._added = deque(out for out in self._added if out.queue != queue)
            self.leases.settle(dropped)
        if self._rounds.acquire(timeout=STANDSTILL_SECONDS):
            self._rounds.release()

    def publish_job(self, job: int) -> None:
        """Publish a job's first items now, as many as its queue has room for."""
        with self._changed:
            self._jobs.append(job)
            self._ensure_thread()
            self._changed.notify()

    def wake(self, after: float) -> None:
        """Poll for work in `after` seconds: an item has ended, and its next attempt is due then, or others may go."""
        with self._changed:
            self._poll_at = min(self._poll_at, time.monotonic() + after)
            self._changed.notify()

    @property
    def trouble(self) -> str | None:
        """The reason why this process can't publish; None when none is known."""
        return self.transport.trouble or self._standstill()

    def _standstill(self) -> str | None:
        """Where the thread stands in a round that has taken too long: each wait in it has a limit of its own."""
        seconds = time.monotonic() - self._round_began
        if seconds < STANDSTILL_SECONDS or self._thread is None:
            return None
        return f"its publisher has stood still for {seconds:.0f} s, at {place_of(self._thread.ident)}"

    def close(self, timeout: float) -> bool:
        """Publish what was added, and end; return False when that takes longer than `timeout` seconds."""
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
                # First: nothing is claimed while nothing can be published.
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
        """Have others publish what was added, if this process can't reach the broker, and pause."""
        _log_outage(error)
        if isinstance(error, Unreachable):
            self._queue_added()
        if not self._closing:
            time.sleep(POLL_SECONDS)

    def _end(self) -> None:
        """Settle what is published, and end the leases; without a database all claims lapse."""
        if min(self._relay.settle_at, self.leases.due) < math.inf:
            with suppress(psycopg.Error, PoolTimeout), self.process.pool.connection(CLOSE_SECONDS) as conn:
                self._relay.settle(conn)
                self.leases.maintain(conn, closing=True)
        self.transport.close()

    def _queue_added(self) -> None:
        """Put what was added into the outbox; without a database its leases lapse."""
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
        """Wait until something is added, a full queue has room again, or the poll is due."""
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
        """Publish one batch of each kind of work; return whether there was any."""
        now = time.monotonic()
        settles, maintains = self._relay.settle_at <= now, self.leases.due <= now
        if not (added or jobs or settles or maintains or self._looks):
            return False
        with self.process.pool.connection() as conn:
            # Where nobody polls, what is left for later would be left for good.
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
