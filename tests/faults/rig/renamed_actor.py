"""An actor of the next release."""

import time

import dramatiq

from tests.faults.rig.run_log import logged_run


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def renamed(number: int, seconds: float = 0.0) -> None:
    """Only succeed."""
    with logged_run():
        time.sleep(seconds)
