"""The publisher: a thread in which what is stored gets onto the broker, as soon as there is something and room for it.

One a process; any process may take any job's next batch, with a claim that lapses by itself.
"""

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.process.outage import OutageLog
from callboard.middleware.publish.backlog import QueueBacklogs
from callboard.middleware.publish.relay import Relay, complain_of_refusal
from callboard.middleware.publish.transport import Refused, Transport, Unreachable
from callboard.sql import timings
from callboard.sql.pool import Pool
from callboard.sql.rows import Outgoing
from callboard.sql.writes import publishing

log = logging.getLogger("callboard.publisher")
_complain = OutageLog(
    log, "publishing is held up, trying on; nothing is lost: %s", "publishing goes on again, after %.1f s"
)

#: Seconds between two looks for work when there was none.
PERIOD = 0.20
#: Seconds between two looks at a queue that was full: the less its workers empty meanwhile, the less need lie in it,
#: and all of it is before a job that comes now.
LOOK = 0.03
#: Outbox messages claimed at a time.
OUTBOX_BATCH = 500
#: Seconds for which a message that was handed over is surely this process's to publish: its claim holds for longer.
FRESH = timings.PUBLISH_LEASE_SECONDS / 2


@dataclass(slots=True)
class Publisher:
    """See the module. `link`, which `levels` asks too, is opened by the publisher's own thread."""

    pool: Pool
    transport: Transport
    backlogs: QueueBacklogs
    _handed: deque[tuple[float, Outgoing]] = field(default_factory=deque)  # and when
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _dispatch: Relay = field(init=False)
    _thread: threading.Thread | None = None
    _closing: bool = False
    _looking: bool = False
    _nudged: bool = False
    _jobs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dispatch = Relay(self.transport, self.backlogs)

    def start(self) -> None:
        """Look for work from now on: what a worker does. Without it, only what is handed over is published."""
        self._looking = True
        with self._wake:
            self._ensure_thread()

    def add(self, out: Outgoing) -> None:
        """Publish a message that this process just stored, and holds the claim of."""
        with self._wake:
            self._leave_stale()
            self._handed.append((time.monotonic(), out))
            self._ensure_thread()
            self._wake.notify()

    def begin(self, job: int) -> None:
        """Publish a job's first items at once, as far as there is room."""
        with self._wake:
            self._jobs.append(job)
            self._ensure_thread()
            self._wake.notify()

    def nudge(self) -> None:
        """Look for work now: what ended left room for more."""
        with self._wake:
            self._nudged = True
            self._wake.notify()

    @property
    def trouble(self) -> str | None:
        """What keeps this process from publishing; None: nothing that is known."""
        return self.transport.trouble

    def close(self, timeout: float) -> bool:
        """Publish what was handed over and end; False when that took longer than `timeout` seconds."""
        with self._wake:
            self._closing = True
            self._wake.notify()
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
            try:
                # Before anything is claimed: while nothing can be published, nothing is.
                self.transport.serve(mend=self._looking and not self._closing)
                worked = self._turn(*self._next())
                if self.transport.trouble is None:  # who only sends does not try until there is something
                    _complain.over()
            except (Unreachable, psycopg.Error, PoolTimeout) as error:
                (complain_of_refusal if isinstance(error, Refused) else _complain)(error)
                worked = False
                if not self._closing:
                    time.sleep(PERIOD)
            except Exception:
                log.exception("the publisher met an error it doesn't know; it goes on")
                worked = False
                time.sleep(PERIOD)
            if self._closing and not self._handed and not self._jobs:
                self.transport.close()
                return
            if not worked:
                self._rest()

    def _next(self) -> tuple[list[Outgoing], list[int]]:
        with self._wake:
            self._leave_stale()
            handed = [self._handed.popleft()[1] for _ in range(min(len(self._handed), OUTBOX_BATCH))]
            jobs, self._jobs = self._jobs, []
        return handed, jobs

    def _leave_stale(self) -> None:
        """What has waited while nothing could be published: its claim lapses, and whoever claims it then sends it as
        one that may be a second copy. Sent from here as well, it would run unasked beside that.
        """
        oldest = time.monotonic() - FRESH
        while self._handed and self._handed[0][0] < oldest:
            self._handed.popleft()

    def _rest(self) -> None:
        """Wait for something to do: that somebody says so, that a full queue has room again, or a period at most."""
        end = time.monotonic() + (PERIOD if self._looking else 5.0)
        while (left := end - time.monotonic()) > 0:
            full = self.backlogs.watched() if self._looking else []
            if self._woken(min(left, LOOK) if full else left) or any(map(self.backlogs.emptied, full)):
                return

    def _woken(self, seconds: float) -> bool:
        with self._wake:
            if not self._handed and not self._jobs and not self._closing and not self._nudged:
                self._wake.wait(seconds)
            woken = bool(self._handed or self._jobs or self._closing or self._nudged)
            self._nudged = False
        return woken

    def _turn(self, handed: list[Outgoing], jobs: list[int]) -> bool:
        """One round of everything there is to publish; True when there was something."""
        with self.pool.connection() as conn:
            worked = bool(handed) and self._dispatch.outbox(conn, handed) > 0
            for job in jobs:
                worked |= bool(self._dispatch.job(conn, job, []))
            if self._looking and not self._closing:
                due = publishing.claim_outbox(conn, OUTBOX_BATCH)
                worked |= bool(due) and self._dispatch.outbox(conn, due) > 0
                worked |= self._dispatch.next_job(conn)
        return worked
