"""The means of submission in the web app: connections, leases, and the reading of bodies of lines in threads."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cached_property, partial
from typing import BinaryIO, TypeVar, cast

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from callboard.middleware.process.process import Process
from callboard.middleware.submission.async_source import AsyncSource
from callboard.middleware.submission.lease import SubmissionLease
from callboard.sql.pool import database_address
from callboard.web.database import SUBMITTERS
from callboard.web.parameters import Refused

T = TypeVar("T")

#: Bodies of lines that are read at the same time, each in a thread, which waits for the database or for its client; and
#: of one tenant, which may send slowly.
STREAMS, TENANT_STREAMS = 8, 4
#: Threads of submissions, also of those that come as JSON. They are apart from the threads of other requests, which
#: would all be taken while submissions wait for a lock.
THREADS = 24
#: Seconds without a byte after which a body is given up.
IDLE_SECONDS = 30.0
BUSY = f"{STREAMS} submissions are being read, or {TENANT_STREAMS} of one tenant, and nothing was stored: try again"


class Submitter:
    """Stores items in the database at `url` (None: DATABASE_URL). It has no broker: workers publish what it stores."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._reading = list[str | None]()  # the tenant of each body

    @cached_property
    def process(self) -> Process:
        """The connections that store items. Raises NotConfigured."""
        return Process(database_address(self._url), connections=SUBMITTERS)

    @cached_property
    def lease(self) -> SubmissionLease:
        """The leases of the submissions that go on here."""
        return SubmissionLease(self.process)

    @cached_property
    def _threads(self) -> CapacityLimiter:
        return CapacityLimiter(THREADS)

    async def run(self, work: Callable[[], T]) -> T:
        """Have `work` store something in a thread, as soon as one is free."""
        return await to_thread.run_sync(work, limiter=self._threads)

    async def read(self, tenant: str | None, parts: AsyncIterator[bytes], work: Callable[[BinaryIO], T]) -> T:
        """Have `work` read a body in a thread, as far as it has come; the loop reads no more than that thread asks for.
        `tenant`: the only one that its sender is of; None: all.

        Raises HTTPException when too many are being read, and Refused for a body that does not go on.
        """
        has_its_share = tenant is not None and self._reading.count(tenant) >= TENANT_STREAMS
        if has_its_share or len(self._reading) >= STREAMS:
            raise HTTPException(503, BUSY, {"Retry-After": "1"})
        self._reading.append(tenant)
        try:
            source = AsyncSource(_while_it_goes_on(parts))
            body = cast("BinaryIO", io.BufferedReader(_Parts(iter(source))))
            return await source.read_by(self.run(partial(work, body)))
        finally:
            self._reading.remove(tenant)

    def close(self) -> None:
        """Close what was opened."""
        opened = self.__dict__  # what was never used is not made for this
        if "lease" in opened:
            self.lease.stop()
        if "process" in opened:
            self.process.close()
        for name in ("lease", "process"):
            opened.pop(name, None)


async def _while_it_goes_on(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except ClientDisconnect:
            raise ClientDisconnect("its sender left") from None  # for the reason that the job has
        except TimeoutError:
            said = f"nothing was sent for {IDLE_SECONDS:.0f} s, so the submission broke off"
            raise Refused(408, said, code="slow") from None
        yield part


class _Parts(io.RawIOBase):
    """The parts of a body as a file."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = memoryview(part)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
