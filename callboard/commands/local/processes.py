"""Those who work: worker processes, the worker in this process, and the web app."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dramatiq

from callboard.commands import actor_modules
from callboard.commands.services import NotStarted, Process, wait_until
from callboard.commands.services.child_process import tail

#: Seconds that a start may take, and that a worker may take to finish what it has in hand.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0


@dataclass(slots=True)
class ManagedProcess:
    """A process of ours that says in its log when it is ready."""

    name: str
    process: Process
    word: str

    @classmethod
    def of(
        cls, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], word: str
    ) -> "ManagedProcess":
        """`python -m COMMAND…`."""
        unbuffered = {**environment, "PYTHONUNBUFFERED": "1"}
        return cls(name, Process([sys.executable, "-m", *command], log=log, env=unbuffered), word)

    def start(self) -> None:
        """Start it, again if need be; whatever is left of it before goes first."""
        self.process.kill()
        self.process.log.unlink(missing_ok=True)
        self.process.start()

    def wait(self) -> None:
        """Wait until it is ready; raises NotStarted with the last line of its log."""
        try:
            self.process.wait_ready(lambda: self.word in tail(self.process.log, 1000), START_TIMEOUT)
        except NotStarted:
            last = _reason(tail(self.process.log, 20))
            raise NotStarted(f"{self.name} did not start: {last} (its log: {self.process.log})") from None

    def ask_to_end(self) -> None:
        """Begin to stop it. Once only: at a second signal Dramatiq drops what is in hand."""
        if self.process.running():
            self.process.send(self.process.farewell)

    def stop(self) -> None:
        """See it stopped, after it was asked to end."""
        # It needs a moment more than its own patience, to say goodbye.
        wait_until(lambda: not self.process.running(), STOP_TIMEOUT + 10)
        self.process.kill()


def worker(number: int, threads: int, folder: Path, environment: Mapping[str, str]) -> ManagedProcess:
    """`dramatiq callboard.actors` with one process: if it dies, others go on."""
    patience = str(round(STOP_TIMEOUT * 1000))
    sizes = ["--processes", "1", "--threads", str(threads), "--worker-shutdown-timeout", patience]
    command = ["dramatiq", "callboard.actors", *sizes]
    log = folder / f"worker-{number}.log"
    return ManagedProcess.of(
        f"worker {number}", command, log, environment, "Worker process is ready for action."
    )


def web(port: int, folder: Path, environment: Mapping[str, str]) -> ManagedProcess:
    """`callboard serve`."""
    command = ["callboard.commands.main", "serve", "--port", str(port)]
    return ManagedProcess.of("the web app", command, folder / "web.log", environment, "Callboard is at ")


class InProcessWorker:
    """The worker in this very process: nobody else can take what lies in the in-process broker."""

    def __init__(self, threads: int, folder: Path) -> None:
        self.threads = threads
        self.folder = folder
        self._worker: dramatiq.Worker | None = None

    def start(self) -> None:
        """Take messages from now on; what it logs goes to a file, as that of a worker process does."""
        logging.basicConfig(filename=self.folder / "worker.log", level=logging.INFO, format=LOG_FORMAT)
        broker = actor_modules.assemble()
        self._worker = dramatiq.Worker(broker, worker_threads=self.threads)
        self._worker.start()

    def stop(self) -> None:
        """Finish what is in hand."""
        if self._worker is not None:
            self._worker.stop(timeout=round(STOP_TIMEOUT * 1000))
            self._worker.broker.close()


LOG_FORMAT = "[%(asctime)s] [%(threadName)s] [%(name)s] [%(levelname)s] %(message)s"


def _reason(log: str) -> str:
    """The last line that isn't the master's, which only says that a process of its own ended."""
    lines = [line for line in log.splitlines() if line.strip()]
    own = [line for line in lines if "[dramatiq.MainProcess]" not in line]
    return (own or lines or [""])[-1]
