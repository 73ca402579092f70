"""Outages: log an outage once every few seconds instead of once a failure."""

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

#: Seconds between two log lines about the same outage.
LOG_EVERY_SECONDS = 5.0


class Outage:
    """Whether something is out of order, since when, and whether that was logged. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._logged_at = -LOG_EVERY_SECONDS
        self._logged = False

    def observe(self) -> bool:
        """Note a failure; return whether to log it now."""
        with self._lock:
            now = time.monotonic()
            if self._since is None:
                self._since = now
            due = now - self._logged_at >= LOG_EVERY_SECONDS
            if due:
                self._logged_at, self._logged = now, True
            return due

    def end(self) -> float | None:
        """Note that all is well; return how many seconds the outage lasted, or None if none was logged."""
        if self._since is None:
            return None
        with self._lock:
            since, logged = self._since, self._logged
            self._since, self._logged = None, False
            return time.monotonic() - since if logged and since is not None else None


@dataclass(slots=True)
class OutageLog:
    """Logs an outage as a warning, at most every few seconds. Call it with each error; call `over` after a success.

    `text` has one ``%s`` for the error; `end_text`, if any, one ``%.1f`` for the seconds that the outage lasted.
    """

    log: logging.Logger
    text: str
    end_text: str = ""
    _outage: Outage = field(default_factory=Outage)

    def __call__(self, error: BaseException) -> None:
        """Log the error, unless one was logged a moment ago."""
        if self._outage.observe():
            self.log.warning(self.text, reason(error))

    def over(self) -> None:
        """Log that the outage has ended, if it was logged."""
        seconds = self._outage.end()
        if seconds is not None:
            self.log.warning(self.end_text, seconds)


#: No messages come from RabbitMQ.
disconnected = Outage()


class ThrottleFilter(logging.Filter):
    """Throttles what Dramatiq's consumers log about a lost connection, all of them together."""

    def __init__(self, outage: Outage) -> None:
        super().__init__()
        self._outage = outage

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        text = str(record.msg)
        if text.startswith("Restarting consumer in"):
            return False
        return not text.startswith("Consumer encountered a connection error") or self._outage.observe()


def reason(error: BaseException) -> str:
    """The text of an error, or of the innermost error that has one: pika wraps errors in errors without a text."""
    while not str(error).strip() and (inner := _inner(error)) is not None:
        error = inner
    return str(error).strip() or type(error).__name__


def _inner(error: BaseException) -> BaseException | None:
    """The error inside `error`; of several, as pika keeps them, the last."""
    causes: Any = getattr(error, "exceptions", None) or error.args or (getattr(error, "exception", None),)
    return causes[-1] if isinstance(causes[-1], BaseException) else None
