"""A thread for what may wait for the database, and must not make the thread it comes from wait."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("callboard.tracking")


class SideThread:
    """Does one thing after another."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Have it done, in its turn."""
        self._waiting.put(work)
        if self._thread is None or not self._thread.is_alive():  # none yet in this process
            self._thread = threading.Thread(target=self._run, name="callboard-aside", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            work = self._waiting.get()
            try:
                work()
            except Exception:
                log.exception("a message could not be settled; it comes again when this worker ends")
