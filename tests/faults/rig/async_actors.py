"""Actors that wait in an event loop."""

import asyncio
import time
from pathlib import Path

import dramatiq
from dramatiq.middleware import AsyncIO

from tests.faults.rig import actors
from tests.faults.rig.run_log import logged_run

actors.broker.add_middleware(AsyncIO())


async def never() -> None:
    """Wait for what nobody sets."""
    await asyncio.Event().wait()


@dramatiq.actor(max_retries=0, time_limit=3_600_000)
async def patient(how: str, gate: str = "") -> None:
    """Await for ever, or keep the loop to itself until the file `gate` is there."""
    with logged_run():
        if how == "nested":
            await never()
        if how == "gathers":
            await asyncio.gather(never(), never())
        if how == "blocks":
            while not Path(gate).exists():  # noqa: ASYNC240
                time.sleep(0.1)  # noqa: ASYNC251 — the mistake that it is about
