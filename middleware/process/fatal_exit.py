"""Ends a worker process that can't do its work: when its settings make no sense, or outcomes can't be recorded."""

import logging
import os
import signal
import sys
import threading
from typing import Any

import dramatiq

from callboard.sql import settings

log = logging.getLogger("callboard.worker")

#: Seconds until the process ends although actors still run: what they do can't be recorded.
EXIT_SECONDS = 15.0


def check_settings() -> None:
    """Raise NotConfigured if a setting makes no sense; a process of Dramatiq's command logs that as one line and exits
    with 1 instead.
    """
    try:
        settings.check()
    except settings.NotConfigured as error:
        if not is_dramatiq_command():
            raise
        log.critical("%s", error)
        sys.exit(1)


def exit_process(worker: dramatiq.Worker) -> None:
    """Take no more messages, and stop Dramatiq's command; the exit code is set in `after_worker_shutdown`.

    A worker inside an app's own process only takes no more messages, and the process goes on.
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
    """Stop this process of Dramatiq's command in order: its actors that run may end."""
    os.kill(os.getpid(), signal.SIGTERM)


def is_dramatiq_command() -> bool:
    """Whether this process belongs to the `dramatiq` command, which stops in order at a SIGTERM."""
    return getattr(signal.getsignal(signal.SIGTERM), "__module__", None) == "dramatiq.cli"


def _exit() -> None:
    log.critical("an actor is still running; the worker exits without it")
    os._exit(1)
