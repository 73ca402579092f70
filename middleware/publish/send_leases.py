"""The leases under which this process stores plain sends that it publishes at once: see the table `send_leases`.

A lease is of one job. Sends join it for a while. It is renewed while one of them is not published, and ended when all
are. If this process vanishes it lapses, and the sweep has others publish what was sent under it. So a send costs no row
in the outbox.
"""

import math
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from callboard.middleware.publish.transport import Unreachable
from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import Outgoing
from callboard.sql.writes import sends

#: Seconds for which sends join a lease, and after which it is renewed if one of them is still to be published.
JOIN_SECONDS = timings.PUBLISH_LEASE_SECONDS / 4
#: Seconds for which this process publishes them after the lease began, or was renewed: it holds for longer.
HOLD_SECONDS = timings.PUBLISH_LEASE_SECONDS / 2
#: The least seconds between two looks at what is due.
PAUSE_SECONDS = 0.25


@dataclass(slots=True)
class Lease:
    """A lease; times are monotonic, and of before the statement that stored them. One that is `lost` is left to lapse:
    what was sent under it is not known.
    """

    job: int
    opened: float
    renewed: float
    joining: int = 0  # statements that may store something under it
    unpublished: int = 0
    lost: bool = False

    @property
    def due(self) -> float:
        """The time when it is to be ended, renewed or, if it is lost, forgotten."""
        if self.lost:
            return self.renewed + timings.PUBLISH_LEASE_SECONDS
        return (self.renewed if self.unpublished else self.opened) + JOIN_SECONDS


@dataclass(slots=True)
class SendLeases:
    """See the module. The journal's thread joins leases; the publisher's renews and ends them."""

    _leases: dict[int, Lease] = field(default_factory=dict)  # by number
    _newest: dict[int, int] = field(default_factory=dict)  # of each job: its number; sends may join it, while it is new
    _due: float = math.inf
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def joining(self, jobs: Collection[int]) -> Iterator[list[int]]:
        """Give the leases that sends of these jobs may join; they do not end within the block, which stores these."""
        with self._lock:
            oldest = time.monotonic() - JOIN_SECONDS
            newest = {self._newest[job] for job in jobs if job in self._newest}
            joined = {number: lease for number in newest if (lease := self._leases[number]).opened > oldest}
            for lease in joined.values():
                lease.joining += 1
        lost = False
        try:
            yield list(joined)
        except psycopg.OperationalError as error:
            lost = error.sqlstate is None  # perhaps in the COMMIT
            raise
        finally:
            with self._lock:
                for number, lease in joined.items():
                    lease.joining -= 1
                    if lost:
                        self._lose(number)

    def add(self, lease: int | None, job: int, began: float) -> None:
        """Note that a send was stored under a lease, if any, by a statement that began at this monotonic time."""
        if lease is None:
            return
        with self._lock:
            if lease not in self._leases:
                self._leases[lease] = Lease(job, began, began)
                self._newest[job] = lease
                self._due = min(self._due, self._leases[lease].due)
            self._leases[lease].unpublished += 1

    @contextmanager
    def publishing(self, batch: Sequence[Outgoing]) -> Iterator[None]:
        """In its block sends are published and settled. After an error of which that is unsure their leases lapse."""
        try:
            yield
        except Unreachable:
            raise
        except BaseException:
            self._lose_all(batch)
            raise

    def settle(self, batch: Iterable[Outgoing]) -> None:
        """Note that sends are published, or have rows in the outbox."""
        with self._lock:
            for out in batch:
                if out.lease in self._leases:
                    self._leases[out.lease].unpublished -= 1

    def held(self, batch: Iterable[Outgoing]) -> list[Outgoing]:
        """Return the sends whose lease holds for certain. The others are left to the sweep, which sends them as
        suspect. A copy sent from here would not be: it would run without asking whether the other one has run.
        """
        oldest = time.monotonic() - HOLD_SECONDS
        held: list[Outgoing] = []
        lapsing: list[Outgoing] = []
        with self._lock:
            for out in batch:
                lease = self._leases.get(out.lease or 0)
                (held if lease and lease.renewed > oldest else lapsing).append(out)
        self._lose_all(lapsing)
        return held

    def _lose_all(self, batch: Iterable[Outgoing]) -> None:
        with self._lock:
            for number in {out.lease for out in batch if out.lease in self._leases}:
                self._lose(number)

    @property
    def due(self) -> float:
        """The monotonic time when `maintain` has something to do, or earlier; infinity: there is no lease."""
        return self._due

    def maintain(self, conn: Conn, *, closing: bool = False) -> None:
        """End the leases that no send joins any more and of which all are published; renew the others in time.
        `closing`: no send joins any of them.
        """
        now = time.monotonic()
        with self._lock:
            due = {n: lease for n, lease in self._leases.items() if closing or lease.due <= now}
            over = [n for n, lease in due.items() if not (lease.joining or lease.lost or lease.unpublished)]
            kept = [n for n, lease in due.items() if lease.unpublished and not lease.lost]
        if over:
            sends.end_send_leases(conn, over)
        held = set(sends.renew_send_leases(conn, kept)) if kept else set()
        with self._lock:
            for number in over + [n for n, lease in due.items() if lease.lost and not lease.joining]:
                self._forget(number)
                del self._leases[number]
            for number in kept:
                if number in held:
                    due[number].renewed = now
                else:
                    self._lose(number)
            # One that sends join may be due for as long as their statement waits.
            next_due = min((lease.due for lease in self._leases.values()), default=math.inf)
            self._due = max(next_due, now + PAUSE_SECONDS)

    def _lose(self, number: int | None) -> None:
        """Leave a lease to lapse; called with the lock."""
        self._leases[number or 0].lost = True
        self._forget(number)

    def _forget(self, number: int | None) -> None:
        """Have no send join a lease any more; called with the lock."""
        job = self._leases[number or 0].job
        if self._newest.get(job) == number:
            del self._newest[job]
