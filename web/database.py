"""The web app's database. Its pool is opened at the first use, since a mounted app's lifespan is not run."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from psycopg import OperationalError
from psycopg_pool import PoolTimeout
from starlette.concurrency import run_in_threadpool

from callboard.sql.pool import AsyncPool, Conn, connect, database_address, make_async_pool
from callboard.sql.reads.queries import Query, arun

T = TypeVar("T")

#: Connections at most; a read holds one for a millisecond or two.
SIZE = 4
#: Seconds that a request waits for a connection before it is told that there is none.
WAIT = 3.0


class Database:
    """Answers queries. Belongs to one event loop at a time; a request of another gets a pool of its own."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._pool: AsyncPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    async def read(self, query: Query[T]) -> T:
        """The answer; raises NotConfigured, or psycopg's OperationalError where there is no database."""
        pool = await self.pool()
        try:
            return await _ask(pool, query)
        except PoolTimeout:
            raise
        except OperationalError:
            # The server was restarted or a proxy gave up: idle connections are stale, new ones may work.
            await pool.check()
            return await _ask(pool, query)

    async def write(self, write: Callable[[Conn], T]) -> T:
        """Run a write in a thread, on a connection of its own: it is rare, and may take long."""

        def run() -> T:
            with connect(database_address(self._url)) as conn:
                return write(conn)

        return await run_in_threadpool(run)

    async def pool(self) -> AsyncPool:
        """The pool of the running loop, opened in the background."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._pool, self._loop, self._opening = None, loop, asyncio.Lock()
        async with self._opening:
            if self._pool is None:
                pool = make_async_pool(database_address(self._url), size=SIZE)
                await pool.open()
                self._pool, self._keeper = pool, asyncio.create_task(_keep(pool))
            return self._pool

    async def close(self) -> None:
        """Close the pool, if it was opened here; the next read opens another."""
        keeper, self._pool, self._keeper = self._keeper, None, None
        if keeper is not None and self._loop is asyncio.get_running_loop():
            keeper.cancel()
            await asyncio.wait([keeper])


async def _ask(pool: AsyncPool, query: Query[T]) -> T:
    async with pool.connection(timeout=WAIT) as conn:
        return await arun(conn, query)


async def _keep(pool: AsyncPool) -> None:
    """Close the pool when this is cancelled, by us or by the end of the event loop.

    The pool's own tasks take no notice of a cancellation while they connect: the loop of a mounted app, whose
    lifespan nobody runs, would wait for them for ever.
    """
    try:
        await asyncio.Event().wait()
    finally:
        await pool.close()
