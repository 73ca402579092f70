"""How a worker process ends that can't record what its actors do: soon, and so that others notice."""

import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import dramatiq

from callboard.sql import settings

log = logging.getLogger("callboard.worker")

#: Seconds after which it ends whatever its actors do: what they did can't be recorded.
PATIENCE = 15.0


def check_settings() -> None:
    """Refuse settings that make no sense before a message is taken. Raises NotConfigured; a process of Dramatiq's
    command logs that error as one line and exits with 1 instead.
    """
    try:
        settings.check()
    except settings.NotConfigured as error:
        if not ours():
            raise
        log.critical("%s", error)
        sys.exit(1)


def exit_process(worker: dramatiq.Worker) -> None:
    """Take no more messages, and have Dramatiq's command stop; `after_worker_shutdown` gives the exit code.

    A worker inside somebody's own process only takes no more messages: that process is not ours to end.
    """
    threads: list[Any] = [*worker.workers, *list(worker.consumers.values())]
    for thread in threads:
        thread.pause()
    if ours():
        threading.Thread(target=_end, name="callboard-end", daemon=True).start()
        os.kill(os.getpid(), signal.SIGTERM)


def ours() -> bool:
    """Whether this process is one of Dramatiq's command, which stops in order at a SIGTERM."""
    return getattr(signal.getsignal(signal.SIGTERM), "__module__", None) == "dramatiq.cli"


def _end() -> None:
    time.sleep(PATIENCE)
    log.critical("an actor does not end, so the worker ends without it")
    os._exit(1)
