"""An actor that stays in hand until it is let go."""

import time
from pathlib import Path

import dramatiq

from tests.faults.rig import actors
from tests.faults.rig.ledger import run

broker = actors.broker


@dramatiq.actor(max_retries=0)
def gated(number: int, gate: str) -> None:
    """Wait until the gate is there."""
    with run():
        while not Path(gate).exists():
            time.sleep(0.02)
