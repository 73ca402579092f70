"""An actor that sends for much later, imported beside the actors."""

import dramatiq

from tests.faults.rig import actors
from tests.faults.rig.run_log import logged_run

broker = actors.broker


@dramatiq.actor(max_retries=0)
def plans(number: int, delays: list[int]) -> None:
    """Send children, each to run after so many milliseconds; they go when it succeeds."""
    with logged_run():
        for delay in delays:
            actors.work.send_with_options(args=(number,), delay=delay)
