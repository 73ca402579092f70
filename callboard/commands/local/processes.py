"""The child processes of `callboard up`, which are workers and the web app; and the in-process worker."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import dramatiq

from callboard.commands import actor_modules
from callboard.commands.services import NotStarted, Process
from callboard.commands.services.child_process import last_line, tail

#: Seconds that a child may take to start, and a worker to finish its running items.
START_SECONDS = 180.0
STOP_SECONDS = 30.0

LOG_FORMAT = "[%(asctime)s] [%(threadName)s] [%(name)s] [%(levelname)s] %(message)s"


class Child(Process):
    """`python -m COMMAND…` with this process's environment; it is ready when its log contains `ready_text`."""

    def __init__(self, name: str, log: Path, ready_text: str, *command: str) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        super().__init__([sys.executable, "-m", *command], log=log, env=environment)
        self.name = name
        self.ready_text = ready_text

    def start(self) -> Self:
        """Start or restart it: kill remaining processes of its group, and truncate its log."""
        self.kill()
        self.log.unlink(missing_ok=True)
        return super().start()

    def wait(self) -> None:
        """Wait until it is ready. Raises NotStarted with the last line of its log, if there is one."""
        try:
            self.wait_ready(lambda: self.ready_text in tail(self.log, 1000), START_SECONDS)
        except NotStarted:
            why = last_line(self.log) or "its log is empty"
            raise NotStarted(f"{self.name} did not start: {why} (its log: {self.log})") from None


def worker(number: int, threads: int, folder: Path) -> Child:
    """Return `dramatiq callboard.actors` with one process, so that the others continue when it dies."""
    timeout = str(round(STOP_SECONDS * 1000))
    options = ["--processes", "1", "--threads", str(threads), "--worker-shutdown-timeout", timeout]
    command = ["dramatiq", "callboard.actors", *options]
    log = folder / f"worker-{number}.log"
    return Child(f"worker {number}", log, "Worker process is ready for action.", *command)


def web(port: int, folder: Path) -> Child:
    """Return `callboard serve`."""
    command = ["callboard.commands.main", "serve", "--no-link", "--port", str(port)]
    return Child("the web app", folder / "web.log", "Callboard is at ", *command)


def stop(children: Sequence[Child]) -> None:
    """Stop all children at the same time; kill a child that takes longer than STOP_SECONDS + 10."""
    for child in children:
        child.ask_to_end()
    for child in children:
        # A worker needs some seconds more after the timeout of its items.
        child.stop(STOP_SECONDS + 10)


class InProcessWorker:
    """A worker in this process, which Dramatiq's in-process broker needs. It logs to worker.log.

    Raises NotStarted with the last line of its log.
    """

    def __init__(self, threads: int, folder: Path) -> None:
        log = folder / "worker.log"
        logging.basicConfig(filename=log, level=logging.INFO, format=LOG_FORMAT)
        self._worker = dramatiq.Worker(actor_modules.assemble(), worker_threads=threads)
        try:
            self._worker.start()
        except SystemExit:  # the end of a worker process that can't be registered
            raise NotStarted(f"the worker did not start: {last_line(log)} (its log: {log})") from None

    def stop(self) -> None:
        """Finish the running items, for at most STOP_SECONDS, and close the broker."""
        self._worker.stop(timeout=round(STOP_SECONDS * 1000))
        self._worker.broker.close()
