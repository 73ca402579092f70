"""Runs an item that may kill its worker alone, so that no other item is charged with the death."""

import threading
from collections.abc import Callable

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.process.process import RETRY_SECONDS, Process, Stopping


class Isolation:
    """The attempts that run in this process. One whose next crash would be its last runs with no other beside it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._changed = threading.Condition(threading.Lock())
        self._running: set[Attempt] = set()
        self._alone: Attempt | None = None  # runs alone, or waits to

    def enter(self, attempt: Attempt, *, alone: bool = False, lead: Attempt | None = None) -> None:
        """Block until the attempt may run; always pair with `leave`, also after an error. `alone`: with no other beside
        it. `lead`: the attempt that waits for this one, as in a batch; this one need not wait while that runs.

        Raises Stopping when the process stops meanwhile.
        """
        with self._changed:
            self._leave(attempt)  # one that is to run alone may have entered before
            self._wait(lambda: self._alone is None or lead in self._running)
            if alone:
                self._alone = attempt
                self._wait(lambda: not self._running)
            self._running.add(attempt)

    def leave(self, attempt: Attempt) -> None:
        """Let others run: the attempt ended, or must not begin."""
        with self._changed:
            self._leave(attempt)

    def _leave(self, attempt: Attempt) -> None:
        self._running.discard(attempt)
        if self._alone is attempt:
            self._alone = None
        self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._process.stopping:
                raise Stopping
            self._changed.wait(RETRY_SECONDS)
