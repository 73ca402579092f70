"""A thread that repeats a step."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
from psycopg_pool import PoolTimeout

#: The longest pause, in seconds, after a step that failed.
RETRY_SECONDS = 2.0
#: The `seconds` of a step that usually runs because `wake` is called.
UNASKED_SECONDS = 60.0


@dataclass(slots=True)
class Periodic:
    """Runs `step` in a daemon thread every `seconds`, and when `wake` is called.

    A step returns the seconds until its next run, or None for `seconds`. An error does not end the thread: the step
    runs again after `seconds`, or 2 s if that is less. The error is logged to the logger ``callboard.<name>``; an error
    of the database goes to `log_outage` instead, if that is given.
    """

    name: str
    seconds: float
    step: Callable[[], float | None]
    log_outage: Callable[[BaseException], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _wake: threading.Event = field(default_factory=threading.Event, init=False)
    #: Whether `stop` was called.
    stopping: bool = field(default=False, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the thread if it is not alive; its first step runs after `seconds`. Does nothing after `stop`."""
        with self._lock:
            if not self.stopping and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name=f"callboard-{self.name}", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Run the step at once, or once more after the current run. Does nothing before `start`."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread; wait at most `timeout` seconds for the current run of the step."""
        with self._lock:
            self.stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        pause = self.seconds
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self.stopping:
                return
            pause = self.run_step()

    def run_step(self) -> float:
        """Run the step in this thread; return the seconds until the next run. Raises nothing."""
        log = logging.getLogger(f"callboard.{self.name}")
        try:
            pause = self.step()
        except (psycopg.Error, PoolTimeout) as error:
            if self.log_outage is None:
                log.debug("the database does not answer; trying again", exc_info=True)
            else:
                self.log_outage(error)
        except BaseException:  # an app's encoder may raise anything, and this thread must go on
            log.exception("unexpected error; trying again")
        else:
            return self.seconds if pause is None else pause
        return min(self.seconds, RETRY_SECONDS)
