"""The web app with a measure of its event loop, how long a request may have to wait for its turn, and of its memory."""

import asyncio
import gc
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from tests.support.webapp import open_app

#: Seconds between two turns that the measure takes.
PAUSE_SECONDS = 0.005
#: Where Linux tells of each thread how long it ran, and how long it was ready and did not.
THREADS = "/proc/self/task"


async def measure(lags: list[float]) -> None:
    """Note how late each turn comes, but for the time in which other processes had the processor."""
    before, waited = time.perf_counter(), waits()
    while True:
        await asyncio.sleep(PAUSE_SECONDS)
        now, later = time.perf_counter(), waits()
        lags.append(max(now - before - PAUSE_SECONDS - max(later - waited, 0.0), 0.0))
        before, waited = now, later


def waits() -> float:
    """Seconds that threads of this process were ready to run and did not: the loop's, or one that kept Python's lock
    from it meanwhile. 0 where the system does not tell.
    """
    found = 0.0
    for thread in os.listdir(THREADS):  # noqa: PTH208 — often, with many threads: a Path takes twice the time
        with suppress(OSError), open(f"{THREADS}/{thread}/schedstat", "rb", buffering=0) as file:  # noqa: PTH123
            found += int(file.read().split()[1]) / 1e9  # an OSError: the thread has ended
    return found


def at_most(lags: list[float], share: float) -> float:
    """The lag at this share of the moments, in seconds: one of 100 ms is there for 100 ms."""
    left = sum(lags) * (1 - share) + len(lags) * PAUSE_SECONDS * (1 - share)
    for lag in sorted(lags, reverse=True):
        left -= lag + PAUSE_SECONDS
        if left < 0:
            return lag
    return 0.0


def memory() -> float:
    """The memory of this process that is in RAM, in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


async def lag(request: Request) -> JSONResponse:
    """GET /lag: the lag that 99 of 100 moments were below since this was asked last, in milliseconds; how much memory
    of this process is in RAM, in MiB.
    """
    lags: list[float] = request.app.state.lags
    answer = {"p99": 1000 * at_most(lags, 0.99), "max": 1000 * max(lags, default=0.0), "memory": memory()}
    lags.clear()
    return JSONResponse(answer)


async def block(_request: Request) -> JSONResponse:
    """GET /block: what must not happen."""
    time.sleep(0.1)  # noqa: ASYNC251
    return JSONResponse({})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Measure while the app runs. As in `callboard serve`, no search for garbage goes through what was imported."""
    gc.collect()
    gc.freeze()
    app.state.lags = []
    task = asyncio.create_task(measure(app.state.lags))
    yield {}
    task.cancel()


app = Starlette(routes=[Route("/lag", lag), Route("/block", block), Mount("/", open_app(None))], lifespan=lifespan)
