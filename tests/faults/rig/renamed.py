"""An actor of the next release."""

import time

import dramatiq

from tests.faults.rig.ledger import run


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def renamed(number: int, seconds: float = 0.0) -> None:
    """Only succeed."""
    with run():
        time.sleep(seconds)
