"""Actors that wait in an event loop."""

import asyncio
import time

import dramatiq
from dramatiq.middleware import AsyncIO

from tests.faults.rig import actors
from tests.faults.rig.run_log import logged_run

actors.broker.add_middleware(AsyncIO())


async def never() -> None:
    """Wait for what nobody sets."""
    await asyncio.Event().wait()


@dramatiq.actor(max_retries=0, time_limit=3_600_000)
async def patient(how: str) -> None:
    """Await for ever, or keep the loop to itself for a while."""
    with logged_run():
        if how == "nested":
            await never()
        if how == "gathers":
            await asyncio.gather(never(), never())
        if how == "blocks":
            time.sleep(8)  # noqa: ASYNC251 — the mistake that it is about
