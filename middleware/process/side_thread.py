"""A thread for work that may block, so that the calling thread does not wait."""

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

log = logging.getLogger("callboard.tracking")

#: Seconds without work after which the thread ends: consumers and brokers do not report that they need it no more.
IDLE_SECONDS = 10.0


class SideThread:
    """Runs functions in order, in one daemon thread ``callboard-<name>``, which exists only while it has work."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Queue a function, from any thread. An error of it is logged, and its message stays unacknowledged."""
        self._queue.put(work)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # not started, or not copied by a fork
                self._thread = threading.Thread(target=self._run, name=f"callboard-{self._name}", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._queue.empty():  # otherwise `run` relies on this thread
                        self._thread = None
                        return
                continue
            try:
                work()
            except BaseException:  # an app's encoder may raise anything
                log.exception("a message can't be acknowledged; it is delivered again when this worker ends")
