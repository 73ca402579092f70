"""The leases under which this process stores the plain sends that it publishes itself: see the table `send_leases`.

A lease belongs to one job. Sends join it for two seconds. The publisher renews it while one of its sends is not
published, and ends it when all are. If this process dies, the lease expires, and the sweep puts its sends into the
outbox. So a send normally needs no outbox row.
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
from callboard.sql.errors import may_be_committed
from callboard.sql.pool import Conn
from callboard.sql.rows import Outgoing
from callboard.sql.writes import sends

#: Seconds for which sends join a lease. After that, it is renewed if one of them is not yet published.
JOIN_SECONDS = timings.PUBLISH_LEASE_SECONDS / 4
#: Seconds for which this process publishes sends after their lease began or was renewed. The lease itself is valid for
#: longer.
HOLD_SECONDS = timings.PUBLISH_LEASE_SECONDS / 2
#: The least seconds between two calls of `SendLeases.maintain`.
PAUSE_SECONDS = 0.25


@dataclass(slots=True)
class Lease:
    """A lease. Its times are monotonic, and were taken before the statement that began or renewed it. A `lost` lease is
    left to expire, because it is unknown which sends were stored or published under it.
    """

    job: int
    opened: float
    renewed: float
    joining: int = 0  # statements that may store something under it
    unpublished: int = 0
    lost: bool = False

    @property
    def due(self) -> float:
        """When the lease must be ended, renewed or, if it is lost, forgotten."""
        if self.lost:
            return self.renewed + timings.PUBLISH_LEASE_SECONDS
        return (self.renewed if self.unpublished else self.opened) + JOIN_SECONDS


@dataclass(slots=True)
class SendLeases:
    """See the module. The journal's thread joins leases; the publisher's renews and ends them."""

    _leases: dict[int, Lease] = field(default_factory=dict)  # by number
    _newest: dict[int, int] = field(default_factory=dict)  # {job: number of its newest lease}, which sends may join
    _due: float = math.inf
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def joining(self, jobs: Collection[int]) -> Iterator[list[int]]:
        """Yield the leases that sends of these jobs may join. They do not end in the block, which stores the sends."""
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
            lost = may_be_committed(error)
            raise
        finally:
            with self._lock:
                for number, lease in joined.items():
                    lease.joining -= 1
                    if lost:
                        self._lose(number)

    def add(self, lease: int | None, job: int, began: float) -> None:
        """Count a send that was stored under `lease`, if any; `began`: the monotonic start of its statement."""
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
        """Publish and settle these sends in the block. After any error except Unreachable it is unknown which of them
        are published, so their leases are lost.
        """
        try:
            yield
        except Unreachable:
            raise
        except BaseException:
            self._lose_all(batch)
            raise

    def settle(self, batch: Iterable[Outgoing]) -> None:
        """Count sends that are published, or have outbox rows now."""
        with self._lock:
            for out in batch:
                if out.lease in self._leases:
                    self._leases[out.lease].unpublished -= 1

    def held(self, batch: Iterable[Outgoing]) -> list[Outgoing]:
        """Return the sends whose lease is certainly valid. The leases of the others are lost: the sweep publishes these
        sends as suspect. A message from here would not be suspect, and would run without a check whether the sweep's
        message has run.
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
            for number in self._leases.keys() & {out.lease for out in batch}:
                self._lose(number)

    @property
    def due(self) -> float:
        """The monotonic time when `maintain` must be called next; infinity: there is no lease."""
        return self._due

    def maintain(self, conn: Conn, *, closing: bool = False) -> None:
        """End the leases that take no more sends and whose sends are all published; renew the others in time.
        `closing`: no lease takes more sends.
        """
        now = time.monotonic()
        with self._lock:
            due = {n: lease for n, lease in self._leases.items() if closing or lease.due <= now}
            over = [n for n, lease in due.items() if not (lease.joining or lease.lost or lease.unpublished)]
            kept = [n for n, lease in due.items() if lease.unpublished and not lease.lost]
        locked = set(sends.end_send_leases(conn, over)) if over else set()
        held = set(sends.renew_send_leases(conn, kept)) if kept else set()
        with self._lock:
            ended = [number for number in over if number not in locked]
            for number in ended + [n for n, lease in due.items() if lease.lost and not lease.joining]:
                self._forget(number)
                del self._leases[number]
            for number in kept:
                if number in held:
                    due[number].renewed = now
                else:
                    self._lose(number)
            # While a statement that joins sends to a lease waits, that lease stays due.
            next_due = min((lease.due for lease in self._leases.values()), default=math.inf)
            self._due = max(next_due, now + PAUSE_SECONDS)

    def _lose(self, number: int) -> None:
        """Leave a lease to expire. The caller holds the lock."""
        self._leases[number].lost = True
        self._forget(number)

    def _forget(self, number: int) -> None:
        """Let no more sends join a lease. The caller holds the lock."""
        job = self._leases[number].job
        if self._newest.get(job) == number:
            del self._newest[job]
