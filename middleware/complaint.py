"""A line in the log at most every few seconds: an outage is one event, not thousands."""

import logging
import time
from collections.abc import Callable

#: Seconds between two lines about the same trouble.
PAUSE = 5.0


def complaints(log: logging.Logger, text: str) -> Callable[[BaseException], None]:
    """A function that warns of an error with `text` (one ``%s`` for the error), unless it did so just now."""
    last = -PAUSE

    def complain(error: BaseException) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PAUSE:
            last = now
            log.warning(text, str(error).strip() or type(error).__name__)

    return complain
