"""Stores a chunk of items in another thread than that which reads and encodes the next one."""

import threading
import time
from collections.abc import Callable
from contextvars import copy_context

#: Seconds for which who reads stands still, so that the thread gets Python's lock. It needs that for moments only,
#: between PostgreSQL's answers, and would else wait 5 ms for each. One pause for 256 items is the fastest.
PAUSE_SECONDS = 0.0001


class StoringThread:
    """One call at a time, in a daemon thread of its own: PostgreSQL stores, while Python encodes."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def run(self, store: Callable[[], None]) -> None:
        """Wait for the call before, then begin this one. Raises what the call before raised."""
        self.wait()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run, store), name="callboard-submission", daemon=True
        )
        self._thread.start()

    def _run(self, store: Callable[[], None]) -> None:
        try:
            store()
        except BaseException as error:  # noqa: BLE001 — `wait` raises it
            self._error = error

    def wait(self) -> None:
        """Wait until the call has ended. Raises what it raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def let_go_on(self) -> None:
        """Stand still for a moment if a call is at work."""
        if self._thread is not None and self._thread.is_alive():
            time.sleep(PAUSE_SECONDS)
