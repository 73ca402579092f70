"""Ends a worker process that can't do its work: a setting is invalid, or outcomes can't be recorded."""

import logging
import os
import signal
import sys
import threading
from typing import Any

import dramatiq

from callboard.sql import settings

log = logging.getLogger("callboard.worker")

#: Seconds until the process exits although actors still run: their outcomes can't be recorded.
EXIT_SECONDS = 15.0


def check_settings() -> None:
    """Raise NotConfigured if a setting is invalid; a process of Dramatiq's command logs it and exits with 1."""
    try:
        settings.check()
    except settings.NotConfigured as error:
        if not is_dramatiq_command():
            raise
        log.critical("%s", error)
        sys.exit(1)


def exit_process(worker: dramatiq.Worker) -> None:
    """Take no more messages, and stop Dramatiq's command; the exit code is set in `after_worker_shutdown`.

    If the worker runs inside an app's own process, that process goes on.
    """
    threads: list[Any] = [*worker.workers, *worker.consumers.values()]
    for thread in threads:
        thread.pause()
    if is_dramatiq_command():
        timer = threading.Timer(EXIT_SECONDS, _exit)
        timer.daemon = True
        timer.start()
        stop_process()


def stop_process() -> None:
    """Stop this process of Dramatiq's command gracefully: actors that run may end."""
    os.kill(os.getpid(), signal.SIGTERM)


def is_dramatiq_command() -> bool:
    """Return whether this process belongs to the `dramatiq` command, which stops gracefully at a SIGTERM."""
    return getattr(signal.getsignal(signal.SIGTERM), "__module__", None) == "dramatiq.cli"


def _exit() -> None:
    log.critical("an actor is still running; the worker exits without it")
    os._exit(1)
