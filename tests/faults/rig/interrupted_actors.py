"""Actors in which Dramatiq raises Shutdown when their worker is asked to stop."""

import asyncio
import time

import dramatiq
from dramatiq.middleware import Shutdown

import callboard
from callboard.commands.services import wait_until
from tests.faults.rig.run_log import logged_run

#: What began to work, and what was told to end, one entry each.
_begun, _told = list[None](), list[None]()


def work_on() -> None:
    """Work for as long as one is let. Until all are told none ends: Dramatiq (2.2) goes through a set of those to tell,
    and tells nobody else once that set has changed meanwhile.
    """
    try:
        _begun.append(None)
        while True:
            time.sleep(0.01)
    except Shutdown:
        _told.append(None)
        wait_until(lambda: len(_told) == len(_begun), 60)
        time.sleep(1)  # Dramatiq may not have seen yet that this was the last
        raise


@dramatiq.actor(notify_shutdown=True, max_retries=3, min_backoff=50, max_backoff=100)
def interrupted(how: str) -> str:
    """The first attempt works until Shutdown is raised; then it breaks off, ends in its own way, or logs why it does
    not.
    """
    with logged_run():
        try:
            if callboard.current().attempt == 1:
                work_on()
        except Shutdown:
            if how == "breaks off":
                raise
            if how == "skips":
                raise callboard.Skip("asked to stop") from None
        return how


@dramatiq.actor(notify_shutdown=True, max_retries=0)
def only_once() -> None:
    """It is not tried again."""
    with logged_run():
        work_on()


@dramatiq.actor(max_retries=0)
async def waits() -> None:
    """It does not end before its worker."""
    with logged_run():
        await asyncio.sleep(3600)
