"""The web app's connections. The pool opens at its first use, because a mounted app gets no lifespan events."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from psycopg import OperationalError, errors
from psycopg_pool import PoolTimeout
from starlette.concurrency import run_in_threadpool

from callboard.sql.pool import AsyncConn, AsyncPool, Conn, begin_read, connect, database_address, make_async_pool
from callboard.sql.reads.queries import Query, arun

T = TypeVar("T")

#: Maximum number of connections; a read uses one for a millisecond or two.
CONNECTIONS = 6
#: How many of them change jobs, and how many store items. They are separate because a change may wait for locks, and #:
#: reads must not wait for it.
WRITERS, SUBMITTERS = 2, 2
#: Seconds for which a request waits for a connection before the answer is 503; and for which a read waits if the #:
#: database answers other reads meanwhile, as in a burst of reads on a busy machine.
WAIT_SECONDS, BUSY_SECONDS = 3.0, 12.0


class Busy(OperationalError):
    """All connections for changes are in use."""


class Database:
    """Reads and writes for requests. Each event loop gets a pool of its own."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._pool: AsyncPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closer: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._writers = asyncio.Semaphore(WRITERS)
        self._answered = 0.0  # the end of the last successful read, by the monotonic clock

    async def read(self, query: Query[T]) -> T:
        """Run a query. Raises NotConfigured, QueryCanceled if it takes too long, and OperationalError if the database
        can't be reached.
        """
        return await self.read_together(lambda conn: arun(conn, query))

    async def read_together(self, work: Callable[[AsyncConn], Awaitable[T]]) -> T:
        """Run several queries in one transaction. Retries once if the connection breaks. Raises as `read`."""
        pool = await self.pool()
        try:
            return await self._run(pool, work)
        except (PoolTimeout, errors.QueryCanceled):
            raise
        except OperationalError:
            # After a restart of the server idle connections are broken; new ones may work.
            await pool.check()
            return await self._run(pool, work)

    async def _run(self, pool: AsyncPool, work: Callable[[AsyncConn], Awaitable[T]]) -> T:
        asked = time.monotonic()
        try:
            return await self._run_within(WAIT_SECONDS, pool, work)
        except PoolTimeout:
            if self._answered < asked:
                raise
            return await self._run_within(BUSY_SECONDS, pool, work)

    async def _run_within(self, seconds: float, pool: AsyncPool, work: Callable[[AsyncConn], Awaitable[T]]) -> T:
        async with pool.connection(timeout=seconds) as conn:
            await begin_read(conn)
            found = await work(conn)
        self._answered = time.monotonic()
        return found

    async def write(self, write: Callable[[Conn], T]) -> T:
        """Run a write in a thread, on its own connection, because writes are rare and may take long. Raises Busy."""

        def run() -> T:
            with connect(database_address(self._url)) as conn:
                return write(conn)

        self._enter_loop()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._writers.acquire()  # before the thread: blocked writes must not use up all threads
        except TimeoutError:
            raise Busy from None
        try:
            return await run_in_threadpool(run)
        finally:
            self._writers.release()

    async def pool(self) -> AsyncPool:
        """Return the pool of the running loop, which connects in the background. Raises NotConfigured."""
        self._enter_loop()
        async with self._opening:
            if self._pool is None:
                pool = make_async_pool(database_address(self._url), size=CONNECTIONS - WRITERS - SUBMITTERS)
                await pool.open()
                self._pool, self._closer = pool, asyncio.create_task(_close_at_end(pool))
            return self._pool

    def _enter_loop(self) -> None:
        """Reset the state if the running loop is another one than before."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._pool, self._loop = None, loop
            self._opening, self._writers = asyncio.Lock(), asyncio.Semaphore(WRITERS)

    async def close(self) -> None:
        """Close the pool of the running loop, if there is one; the next read opens a new one."""
        closer, self._pool, self._closer = self._closer, None, None
        if closer is not None and self._loop is asyncio.get_running_loop():
            closer.cancel()
            await asyncio.wait([closer])


async def _close_at_end(pool: AsyncPool) -> None:
    """Close the pool when this task is cancelled, by `close` or by the end of the event loop.

    The pool's own tasks ignore a cancellation while they connect: without this task, the loop of a mounted app would
    wait for them forever.
    """
    try:
        await asyncio.Event().wait()
    finally:
        await pool.close()
