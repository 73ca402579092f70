"""A line in the log at most every few seconds: an outage is one event, not thousands."""

import logging
import time
from collections.abc import Callable
from typing import Any

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
            log.warning(text, reason(error))

    return complain


class Sparing(logging.Filter):
    """Lets through what a consumer says of its lost connection once in a while, for all consumers together."""

    _last = -PAUSE

    def filter(self, record: logging.LogRecord) -> bool:
        """See the class."""
        text = str(record.msg)
        if text.startswith("Restarting consumer in"):
            return False
        if not text.startswith("Consumer encountered a connection error"):
            return True
        now = time.monotonic()
        if now - self._last < PAUSE:
            return False
        self._last = now
        return True


def reason(error: BaseException) -> str:
    """What an error says, or the one at the bottom of it: pika's say nothing themselves."""
    while not str(error).strip() and (within := _within(error)) is not None:
        error = within
    return str(error).strip() or type(error).__name__


def _within(error: BaseException) -> BaseException | None:
    """The error inside of it; pika keeps the last of several, or the one."""
    causes: Any = getattr(error, "exceptions", None) or error.args or (getattr(error, "exception", None),)
    return causes[-1] if isinstance(causes[-1], BaseException) else None
