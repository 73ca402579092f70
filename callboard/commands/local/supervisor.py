"""Restarts processes that end unexpectedly, after a pause that doubles with each failure."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import typer

from callboard.commands.errors import first_line
from callboard.commands.services import NotStarted
from callboard.commands.services.child_process import last_line

#: Seconds between two checks.
CHECK_SECONDS = 0.2
#: Seconds between two checks of the sources.
WATCH_SECONDS = 1.0
#: Seconds before the first restart, and the maximum: the pause doubles with each further restart.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
#: Seconds after which a process counts as stable: its next pause is the first one again.
STEADY_SECONDS = 30.0


@dataclass(slots=True)
class ManagedProcess:
    """A process to keep running. `start` starts or restarts it, and may raise NotStarted or OSError.

    `ask_to_end` lets it finish its running items and end; None: it is not replaced when sources change.
    """

    name: str
    running: Callable[[], bool]
    start: Callable[[], object]
    log: Path
    ask_to_end: Callable[[], object] | None = None
    replaced: bool = False  # it was asked to end, and restarts at once
    restarts: int = 0  # restarts since it last ran for STEADY_SECONDS
    started_at: float = field(default_factory=time.monotonic)
    restart_at: float | None = None  # None while it runs

    def check(self, now: float) -> None:
        """Detect that it has ended, or restart it after its pause. `now`: time.monotonic()."""
        if self.restart_at is None:
            if not self.running() and self.replaced:
                self.restart_at = now
            elif not self.running():
                why = last_line(self.log)
                self._pause(now, f"{self.name} ended unexpectedly{why and f': {why}'} (its log: {self.log})")
        elif now >= self.restart_at:
            self.started_at, self.restart_at, self.replaced = now, None, False
            try:
                self.start()
            except (NotStarted, OSError) as error:
                self._pause(now, first_line(error))

    def replace(self, now: float) -> None:
        """Ask it to end, so that it restarts; if it waits for its restart, restart it at once."""
        if self.ask_to_end is None:
            return
        self.restarts = 0
        if self.restart_at is not None:
            self.restart_at = now
        else:
            self.replaced = True
            self.ask_to_end()

    def _pause(self, now: float, why: str) -> None:
        if now - self.started_at > STEADY_SECONDS:
            self.restarts = 0
        seconds = min(FIRST_PAUSE_SECONDS * 2**self.restarts, LONGEST_PAUSE_SECONDS)
        self.restarts += 1
        self.restart_at = now + seconds
        typer.echo(f"callboard: {why}; restarting it in {seconds:g} s", err=True)


@dataclass(slots=True)
class Supervisor:
    """Checks its processes in a thread. The system ends restarted processes with that thread: close it last."""

    processes: list[ManagedProcess] = field(default_factory=list)
    #: Returns the sources that changed since its last call; None: sources are not watched.
    changed: Callable[[], list[str]] | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _closing: threading.Event = field(default_factory=threading.Event)
    _checking: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None
    _look_at: float = 0.0  # monotonic

    def start(self) -> None:
        """Start checking the processes."""
        self._thread = threading.Thread(target=self._run, name="callboard-supervisor", daemon=True)
        self._thread.start()

    def stop_restarting(self) -> None:
        """Stop restarting processes; return when a restart in progress is done."""
        self._stopping.set()
        with self._checking:
            return

    def close(self) -> None:
        """End the thread, and with it every restarted process that still runs."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(CHECK_SECONDS):
            with self._checking:
                self._replace_changed()
                for process in self.processes:
                    if not self._stopping.is_set():
                        process.check(time.monotonic())
        self._closing.wait()

    def _replace_changed(self) -> None:
        if self.changed is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + WATCH_SECONDS
        if sources := self.changed():
            typer.echo(f"callboard: {', '.join(sources[:3])} changed: workers finish their items and restart", err=True)
            for process in self.processes:
                process.replace(time.monotonic())
