"""The actors of a soak: those of the suite, and one with a queue of its own that no fault empties."""

import dramatiq

from tests.faults.rig.ledger import run


@dramatiq.actor(max_retries=0, queue_name="foreign")
def outsider(number: int) -> None:
    """What somebody sends who knows nothing of Callboard."""
    with run():
        return
