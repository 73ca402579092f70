"""The web app with a route that says how late its event loop is, and how much memory its process has.

python -m tests.support.measured_app PORT
"""

import asyncio
import resource
import sys
from pathlib import Path

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from callboard.web import create_app
from tests.support.timer import Timer

#: Seconds between two looks at how late the loop is.
LOOK_SECONDS = 0.005
lags: list[float] = []


async def look() -> None:
    """Note how late the loop is, again and again."""
    while True:
        timer = Timer()
        await asyncio.sleep(LOOK_SECONDS)
        lags.append(timer.seconds - LOOK_SECONDS)


async def measured(_request: Request) -> JSONResponse:
    """What was measured since the last time, in seconds and MiB."""
    found = sorted(lags) or [0.0]
    lags.clear()
    return JSONResponse({"p99": found[len(found) * 99 // 100], "most": found[-1], "memory": memory()})


def memory() -> float:
    """The memory of this process that is in RAM, in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


async def main(port: int) -> None:
    app = create_app(open_to_everyone=True)
    app.routes.append(Route("/measured", measured))
    looking = asyncio.create_task(look())
    await uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning")).serve()
    looking.cancel()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
