"""An actor of the next release."""

import time
from pathlib import Path

import dramatiq

from tests.faults.rig.run_log import logged_run


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def renamed(number: int, seconds: float = 0.0, unless: str = "") -> None:
    """Only succeed, after some seconds unless a file is there."""
    with logged_run():
        time.sleep(0.0 if unless and Path(unless).exists() else seconds)
