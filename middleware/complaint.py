"""A line in the log at most every few seconds: an outage is one event, not thousands. And one when it is over."""

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

#: Seconds between two lines about the same trouble.
PAUSE = 5.0


class Spell:
    """A time of trouble. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._last = -PAUSE
        self._said = False

    def lasts(self) -> bool:
        """There is trouble; whether it is to be said now."""
        with self._lock:
            now = time.monotonic()
            if self._since is None:
                self._since = now
            due = now - self._last >= PAUSE
            if due:
                self._last, self._said = now, True
            return due

    def ends(self) -> float | None:
        """There is none any more; seconds that it lasted, if it was said that it does."""
        if self._since is None:
            return None
        with self._lock:
            since, said = self._since, self._said
            self._since, self._said = None, False
            return time.monotonic() - since if said and since is not None else None


@dataclass(slots=True)
class Complaint:
    """Warns of an error with `text` (one ``%s`` for the error), unless it did so just now. `over` says that what it
    warned of has ended, with `end` (one ``%.1f`` for the seconds that it lasted).
    """

    log: logging.Logger
    text: str
    end: str = ""
    _spell: Spell = field(default_factory=Spell)

    def __call__(self, error: BaseException) -> None:
        """Warn."""
        if self._spell.lasts():
            self.log.warning(self.text, reason(error))

    def over(self) -> None:
        """All is well."""
        seconds = self._spell.ends()
        if seconds is not None:
            self.log.warning(self.end, seconds)


#: That nothing comes from RabbitMQ.
disconnected = Spell()


class Sparing(logging.Filter):
    """Lets through what a consumer says of its lost connection once in a while, for all consumers together."""

    def __init__(self, spell: Spell) -> None:
        super().__init__()
        self._spell = spell

    def filter(self, record: logging.LogRecord) -> bool:
        """See the class."""
        text = str(record.msg)
        if text.startswith("Restarting consumer in"):
            return False
        return not text.startswith("Consumer encountered a connection error") or self._spell.lasts()


def reason(error: BaseException) -> str:
    """What an error says, or the one at the bottom of it: pika's say nothing themselves."""
    while not str(error).strip() and (within := _within(error)) is not None:
        error = within
    return str(error).strip() or type(error).__name__


def _within(error: BaseException) -> BaseException | None:
    """The error inside of it; pika keeps the last of several, or the one."""
    causes: Any = getattr(error, "exceptions", None) or error.args or (getattr(error, "exception", None),)
    return causes[-1] if isinstance(causes[-1], BaseException) else None
