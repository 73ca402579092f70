"""Death of a worker process by itself, when it has told its master that it is there.

It tells that by an event whose lock it holds for a moment. Killed just then, as by a message that comes again at once,
it leaves Dramatiq's master waiting for that lock for ever, and nobody starts another.
"""

import logging
import os
import signal
import threading
from typing import NoReturn

#: What a process says right after its master was told.
READY = "Worker process is ready for action."
#: Seconds after which it dies all the same.
PATIENCE = 20.0


class _Boot(logging.Handler):
    """Hears that the process is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == READY:
            self.over.set()


_boot = _Boot()
logging.getLogger("dramatiq").addHandler(_boot)


def wait_for_boot() -> None:
    """Wait until this worker process may die."""
    _boot.over.wait(PATIENCE)


def die() -> NoReturn:
    """As by the kernel, when memory is short."""
    wait_for_boot()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")
