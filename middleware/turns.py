"""Who may run beside whom in a process, so that nobody pays for the death of a neighbour."""

import threading
from collections.abc import Callable
from enum import IntEnum

from callboard.middleware.attempt import Attempt
from callboard.middleware.claim import PAUSE, Stopping
from callboard.sql.writes import MAX_CRASHES


class Turn(IntEnum):
    """How much of its process an attempt gets to itself."""

    BESIDE = 0  # beside any other
    NEXT = 1  # its item crashed a worker before: beside those whose items did not
    ALONE = 2  # another crash would be its item's last: with nothing beside it, so that it is surely to blame


def turn_of(crashes: int) -> Turn:
    """The turn of an item with so many crashes."""
    if crashes >= MAX_CRASHES - 1:
        return Turn.ALONE
    return Turn.NEXT if crashes else Turn.BESIDE


class Turns:
    """The attempts that run in this process. Who waits while it is `stopping` gets Stopping raised."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping
        self._changed = threading.Condition(threading.Lock())
        self._inside: set[Attempt] = set()
        self._next: Attempt | None = None  # the one whose item crashed before
        self._closed = False  # nobody may enter: that one runs alone, or is about to

    def enter(self, attempt: Attempt, turn: Turn = Turn.BESIDE) -> None:
        """Wait for the turn; `leave` ends it, also one that was waited for in vain."""
        with self._changed:
            self._leave(attempt)  # who asks for a higher turn has one
            if turn is Turn.BESIDE:
                self._wait(lambda: not self._closed)
            else:
                self._wait(lambda: self._next is None)
                self._next = attempt
            if turn is Turn.ALONE:
                self._closed = True
                self._wait(lambda: not self._inside)
            self._inside.add(attempt)

    def leave(self, attempt: Attempt) -> None:
        """The attempt ended, or may not begin."""
        with self._changed:
            self._leave(attempt)

    def _leave(self, attempt: Attempt) -> None:
        self._inside.discard(attempt)
        if self._next is attempt:
            self._next, self._closed = None, False
        self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._stopping():
                raise Stopping
            self._changed.wait(PAUSE)
