"""Resources for submissions in the web app: connections, leases, and threads that read bodies of lines."""

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

#: Maximum number of bodies of lines that are read at once, each in a thread, which may wait for the database or for its
#: #: client; and of those of one tenant, because a tenant may send slowly.
STREAMS, TENANT_STREAMS = 8, 4
#: Threads for all submissions. They are separate from the threads of other requests, because submissions that wait for
#: #: a lock could take all of those.
THREADS = 24
#: Seconds without a byte after which reading a body is given up.
IDLE_SECONDS = 30.0
BUSY = f"{STREAMS} submissions are being read, or {TENANT_STREAMS} of your tenant, and nothing was stored: try again"


class Submitter:
    """Stores items in the database at `url` (None: DATABASE_URL). It has no broker, so workers publish them."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._reading = list[str | None]()  # the tenant of each body that is being read

    @cached_property
    def process(self) -> Process:
        """The object with the connections that store items. Raises NotConfigured."""
        return Process(database_address(self._url), connections=SUBMITTERS)

    @cached_property
    def lease(self) -> SubmissionLease:
        """The leases of the submissions in this process."""
        return SubmissionLease(self.process)

    @cached_property
    def _threads(self) -> CapacityLimiter:
        return CapacityLimiter(THREADS)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a submission thread as soon as one is free, and return its result."""
        return await to_thread.run_sync(work, limiter=self._threads)

    async def read(self, tenant: str | None, parts: AsyncIterator[bytes], work: Callable[[BinaryIO], T]) -> T:
        """Let `work` read a body in a thread while it arrives. The event loop receives only as much as the thread
        reads. `tenant`: the sender's tenant; None: all tenants.

        Raises HTTPException 503 if too many bodies are being read, and Refused if the body stalls.
        """
        has_its_share = tenant is not None and self._reading.count(tenant) >= TENANT_STREAMS
        if has_its_share or len(self._reading) >= STREAMS:
            raise HTTPException(503, BUSY, {"Retry-After": "1"})
        self._reading.append(tenant)
        try:
            source = AsyncSource(_with_idle_limit(parts))
            body = cast("BinaryIO", io.BufferedReader(_Parts(iter(source))))
            return await source.read_by(self.run(partial(work, body)))
        finally:
            self._reading.remove(tenant)

    def close(self) -> None:
        """Close the lease and the connections, if they were used."""
        opened = self.__dict__  # has only the cached properties that were used
        if "lease" in opened:
            self.lease.stop()
        if "process" in opened:
            self.process.close()
        for name in ("lease", "process"):
            opened.pop(name, None)


async def _with_idle_limit(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except ClientDisconnect:
            raise ClientDisconnect("its sender disconnected") from None  # the text becomes the reason of the job
        except TimeoutError:
            detail = f"no data arrived for {IDLE_SECONDS:.0f} s, so the submission was stopped"
            raise Refused(408, detail, code="slow") from None
        yield part


class _Parts(io.RawIOBase):
    """The parts of a body as a raw file."""

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
