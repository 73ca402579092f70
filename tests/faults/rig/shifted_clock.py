"""A clock that is off by CALLBOARD_TEST_CLOCK seconds, imported beside the actors; and actors that wait by it."""

import os
import time

import dramatiq
from dramatiq import common
from dramatiq.errors import Retry

import callboard
from tests.faults.rig import actors
from tests.faults.rig.run_log import logged_run

if os.environ.get("CALLBOARD_TEST_CLOCK"):
    right, off = time.time, float(os.environ["CALLBOARD_TEST_CLOCK"])
    time.time = common.time = lambda: right() + off  # type: ignore[attr-defined]


@dramatiq.actor(max_retries=3)
def late(number: int, seconds: float) -> None:
    """Ask for another attempt, then send a child; each later by some seconds."""
    with logged_run():
        if callboard.current().attempt == 1:
            raise Retry(delay=int(seconds * 1000))
        actors.work.send_with_options(args=(number,), delay=int(seconds * 1000))
