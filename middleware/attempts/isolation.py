"""Runs an item alone if it may kill its worker, so that the crash is not charged to another item."""

import threading
import time
from collections.abc import Callable

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.process.process import RETRY_SECONDS, Process, Stopping
from callboard.sql import timings


class Isolation:
    """The attempts that run in this process. If the next crash of an item would fail it, its attempt runs alone: during
    its first `DEADLY_SECONDS` no other attempt is in its own first `DEADLY_SECONDS`. It does not wait until long
    attempts end, and other attempts wait for it for a short time only.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._changed = threading.Condition(threading.Lock())
        self._running: dict[Attempt, float] = {}  # since when, monotonic
        self._alone: Attempt | None = None  # runs alone, or waits to

    def enter(self, attempt: Attempt, *, alone: bool = False, lead: Attempt | None = None) -> None:
        """Block until the attempt may run; always pair with `leave`, also after an error. `alone`: no other attempt may
        be in its first `DEADLY_SECONDS` at the same time. `lead`: the attempt that waits for this one, as in a batch;
        while the lead runs, this one does not wait for another.

        Raises Stopping when the process stops meanwhile.
        """
        with self._changed:
            self._leave(attempt)  # it may have entered before, without `alone`
            if self._alone is not None:
                self._wait(lambda: self._alone is None or lead in self._running or self._has_run(self._alone))
            if alone:
                self._alone = attempt
                self._wait(lambda: all(map(self._has_run, self._running)))
            self._running[attempt] = time.monotonic()

    def leave(self, attempt: Attempt) -> None:
        """Let other attempts run: this one ended, or must not begin."""
        with self._changed:
            self._leave(attempt)

    def _has_run(self, attempt: Attempt) -> bool:
        return attempt in self._running and time.monotonic() - self._running[attempt] >= timings.DEADLY_SECONDS

    def _leave(self, attempt: Attempt) -> None:
        self._running.pop(attempt, None)
        if self._alone is not None:  # otherwise no thread waits
            self._changed.notify_all()
        if self._alone is attempt:
            self._alone = None

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._process.stopping:
                raise Stopping
            self._changed.wait(RETRY_SECONDS)
