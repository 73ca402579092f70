"""Reads an async iterable from a thread outside its event loop."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class AsyncSource(Generic[T]):
    """Wraps an async iterable as an iterable for another thread; it is read in the event loop that runs now.

    `at_once`: how many values are read per request of the other thread. Nothing is read between two requests, so a fast
    source waits.
    """

    def __init__(self, source: AsyncIterable[T], at_once: int = 1) -> None:
        self._source = aiter(source)
        self._at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._reading: asyncio.Task[Any] | None = None
        self._cancelled = False

    def __iter__(self) -> Iterator[T]:
        while chunk := asyncio.run_coroutine_threadsafe(self._read(), self._loop).result():
            yield from chunk

    async def _read(self) -> list[T]:
        if self._cancelled:
            raise asyncio.CancelledError
        self._reading = asyncio.current_task()
        chunk = []
        async for value in self._source:
            chunk.append(value)
            if len(chunk) == self._at_once:
                break
        return chunk

    async def read_by(self, reader: Awaitable[R]) -> R:
        """Wait for `reader`, which reads this in another thread; return its result. If the wait is cancelled, the other
        thread gets CancelledError.
        """
        reading = asyncio.ensure_future(reader)
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            self._cancelled = True
            if self._reading is not None:
                self._reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            raise
