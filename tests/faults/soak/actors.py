"""The actors of a soak: those of the suite, and one with a queue of its own that no fault empties."""

import dramatiq

from tests.faults.rig import actors  # noqa: F401 — `dramatiq` is given this module only
from tests.faults.rig.run_log import logged_run


@dramatiq.actor(max_retries=0, queue_name="foreign")
def outsider(number: int) -> None:
    """What somebody sends who knows nothing of Callboard."""
    with logged_run():
        return
