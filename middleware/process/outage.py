"""Logs an outage once every few seconds instead of once per failure."""

import logging
import threading
import time
from typing import Any

#: Seconds between two log lines about the same outage.
LOG_EVERY_SECONDS = 5.0


class OutageLog:
    """Logs an outage as a warning, at most every `LOG_EVERY_SECONDS`: call it with each error, and `over` after a
    success.

    `text` has one ``%s`` for the error; `end_text`, if any, one ``%.1f`` for the seconds that the outage lasted, after
    the arguments of `over`. Safe to use from any thread.
    """

    def __init__(self, log: logging.Logger, text: str, end_text: str = "") -> None:
        self._log = log
        self._text = text
        self._end_text = end_text
        self._lock = threading.Lock()
        self._since: float | None = None
        self._logged_at = -LOG_EVERY_SECONDS
        self._logged = False

    def __call__(self, error: BaseException) -> None:
        """Log the error, unless one was logged less than `LOG_EVERY_SECONDS` ago."""
        if self.due():
            self._log.warning(self._text, reason(error))

    def due(self) -> bool:
        """Note a failure; return whether to log it now."""
        with self._lock:
            now = time.monotonic()
            if self._since is None:
                self._since = now
            due = now - self._logged_at >= LOG_EVERY_SECONDS
            if due:
                self._logged_at, self._logged = now, True
            return due

    def over(self, *args: object) -> None:
        """Log that the outage has ended, if it was logged."""
        if self._since is None:
            return
        with self._lock:
            since, logged = self._since, self._logged
            self._since, self._logged = None, False
        if logged and since is not None:
            self._log.warning(self._end_text, *args, time.monotonic() - since)


#: RabbitMQ delivers no messages; Dramatiq's consumers log why.
disconnected = OutageLog(logging.getLogger("callboard.rabbitmq"), "%s", "messages come from %s again, after %.1f s")


class ThrottleFilter(logging.Filter):
    """Throttles the log lines of Dramatiq's consumers about a lost connection, for all consumers together. Drops their
    lines about a message whose actor is missing: these say that it becomes a dead letter, which most such messages do
    not.
    """

    def __init__(self, outage: OutageLog) -> None:
        super().__init__()
        self._outage = outage

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        text = str(record.msg)
        if text.startswith(("Restarting consumer in", "Received message for undefined actor")):
            return False
        return not text.startswith("Consumer encountered a connection error") or self._outage.due()


def reason(error: BaseException) -> str:
    """Return the text of an error, or of the error inside it: pika wraps errors in errors that have no text."""
    while not str(error).strip() and (inner := _inner(error)) is not None:
        error = inner
    return str(error).strip() or type(error).__name__


def _inner(error: BaseException) -> BaseException | None:
    """Return the error inside `error`, or None; the last one if there are several, as in pika's errors."""
    causes: Any = getattr(error, "exceptions", None) or error.args or (getattr(error, "exception", None),)
    return causes[-1] if isinstance(causes[-1], BaseException) else None
