"""What tests share: waiting for a condition, and real Dramatiq workers in processes of their own."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

from callboard.commands.services.child_process import wait_until
from tests.support.boot_death import READY
from tests.support.forked import ForkedProcess

__all__ = ["StartWorker", "Worker", "wait_until"]

BOOT_TIMEOUT = 300.0
STOP_TIMEOUT = 300.0


class Worker:
    """`dramatiq MODULE…` as a user runs it: a master and its worker processes, in a group of their own."""

    def __init__(
        self,
        modules: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str],
        processes: int = 1,
        threads: int = 8,
        arguments: Sequence[str] = (),
    ) -> None:
        counts = ["--processes", str(processes), "--threads", str(threads)]
        command = [sys.executable, "-m", "dramatiq", *modules, *counts, *arguments]
        unbuffered = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "default"}
        # What a killed one leaves among the temporary files goes with the test.
        own = {**unbuffered, "TMPDIR": str(log.parent)}
        self.process = ForkedProcess(command, log=log, env={**os.environ, **own, **env})
        self.processes = processes
        self.boots = 0

    @property
    def output(self) -> str:
        """All that was logged so far, over all of its starts."""
        log = self.process.log
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    @property
    def pid(self) -> int:
        """The master's pid."""
        return self.process.pid

    def start(self) -> Self:
        """Start it (again), and wait until all of its processes take messages; one may have died of them by then."""
        self.begin()
        wait_until(lambda: self.ready() or not self.process.running(), BOOT_TIMEOUT)
        if not self.ready():
            self.process.wait_ready(self.ready, 0)
        return self

    def begin(self) -> Self:
        """Start it (again) without waiting."""
        self.boots = self.output.count(READY)
        self.process.start()
        return self

    def ready(self) -> bool:
        """Whether all processes of this start take messages."""
        return self.output.count(READY) >= self.boots + self.processes

    def children(self) -> list[int]:
        """The pids of the master's children: worker processes and helpers of multiprocessing (Linux)."""
        found: list[int] = []
        for path in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):  # that thread, or the master, has just ended
                found += map(int, path.read_text(encoding="ascii").split())
        return found

    def stop(self) -> int | None:
        """SIGTERM, as a deploy does; its exit code."""
        return self.process.stop(STOP_TIMEOUT)

    def kill(self) -> None:
        """SIGKILL to the master and all of its children, as a power cut would."""
        self.process.kill()


class StartWorker(Protocol):
    """The fixture `worker`."""

    def __call__(
        self,
        *modules: str,
        env: Mapping[str, str] | None = None,
        processes: int = 1,
        threads: int = 8,
        arguments: Sequence[str] = (),
    ) -> Worker:
        """Start `dramatiq MODULE…` and wait until it takes messages."""
        ...
