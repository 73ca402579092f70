"""Who may run beside whom in a process, so that nobody is failed for the death of a neighbour."""

import threading
from collections.abc import Callable

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.process.process import RETRY_SECONDS, Process, Stopping


class Isolation:
    """The attempts that run in this process. One whose item's next crash would be its last has the process to itself,
    so that it is surely to blame. Who waits while the process is stopping gets Stopping raised.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._changed = threading.Condition(threading.Lock())
        self._inside: set[Attempt] = set()
        self._alone: Attempt | None = None  # runs with nothing beside it, or is about to

    def enter(self, attempt: Attempt, *, alone: bool = False, lead: Attempt | None = None) -> None:
        """Wait for the turn; `leave` ends it, also one that was waited for in vain. Who is led by one that runs has its
        turn with it: that one would wait for this one.
        """
        with self._changed:
            self._leave(attempt)  # who is to be alone was beside others
            self._wait(lambda: self._alone is None or lead in self._inside)
            if alone:
                self._alone = attempt
                self._wait(lambda: not self._inside)
            self._inside.add(attempt)

    def leave(self, attempt: Attempt) -> None:
        """The attempt ended, or may not begin."""
        with self._changed:
            self._leave(attempt)

    def _leave(self, attempt: Attempt) -> None:
        self._inside.discard(attempt)
        if self._alone is attempt:
            self._alone = None
        self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._process.stopping:
                raise Stopping
            self._changed.wait(RETRY_SECONDS)
