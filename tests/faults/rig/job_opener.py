"""An actor that opens a job of its own, whose submission lapses soon."""

from pathlib import Path

import dramatiq

import callboard
from tests.faults.rig.actors import work
from tests.faults.rig.run_log import logged_run
from tests.faults.rig.submitter import hurry, waiting

hurry()


@dramatiq.actor(max_retries=0)
def opens(gate: str) -> None:
    """Send the first half of a job's items, and the second when the gate is there."""
    with logged_run(), callboard.job("inner"):
        for item in waiting(Path(gate)):
            work.send(item["number"])
