"""An actor on a queue of its own, in workers that know no other; its second attempt comes late."""

import dramatiq

import callboard
from tests.faults.rig.run_log import logged_run

broker = callboard.install()


@dramatiq.actor(queue_name="elsewhere", max_retries=1, min_backoff=8_000, max_backoff=8_000)
def later(number: int) -> None:
    """Fail once."""
    with logged_run():
        if callboard.current().attempt == 1:
            raise ValueError(f"number {number} needs another try")
