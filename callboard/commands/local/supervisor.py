"""Keeps things running: what ends by itself is started again, after a pause that grows."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import typer

from callboard.commands.errors import first_line
from callboard.commands.services import NotStarted

#: Seconds between two looks; before a second start, at first and at most; after which a start counts as good.
LOOK = 0.2
PAUSE, LONGEST_PAUSE = 0.5, 30.0
STEADY = 30.0


@dataclass(slots=True)
class RestartState:
    """One thing: what it is called, whether it runs, how to start it (again), where it logs."""

    name: str
    running: Callable[[], bool]
    start: Callable[[], object]
    log: object
    starts: int = 0  # since it last ran for long
    since: float = field(default_factory=time.monotonic)
    due: float = 0.0  # when it is started again; 0: it runs

    def look(self, now: float) -> None:
        """Start it when it is due."""
        if self.due and now >= self.due:
            self._start(now)
        elif not self.due and not self.running():
            self._put_off(now, f"{self.name} ended by itself (its log: {self.log})")

    def _start(self, now: float) -> None:
        self.since, self.due = now, 0.0
        try:
            self.start()
        except (NotStarted, OSError) as error:
            self._put_off(now, first_line(error))

    def _put_off(self, now: float, why: str) -> None:
        self.starts = 0 if now - self.since > STEADY else self.starts
        pause = min(PAUSE * 2**self.starts, LONGEST_PAUSE)
        self.starts += 1
        self.due = now + pause
        typer.echo(f"callboard: {why}; it is started again in {pause:g} s", err=True)


@dataclass(slots=True)
class Supervisor:
    """Looks after all that it is given, in a thread. What it starts lives no longer than that thread: end it last."""

    kept: list[RestartState] = field(default_factory=list)
    _hushed: threading.Event = field(default_factory=threading.Event)
    _ending: threading.Event = field(default_factory=threading.Event)
    _looking: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def begin(self) -> None:
        """Look from now on."""
        self._thread = threading.Thread(target=self._run, name="callboard-keeper", daemon=True)
        self._thread.start()

    def hush(self) -> None:
        """Start nothing any more."""
        self._hushed.set()
        with self._looking:
            return

    def end(self) -> None:
        """The thread ends, and with it what it started and still runs."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._hushed.wait(LOOK):
            with self._looking:
                for one in self.kept:
                    if not self._hushed.is_set():
                        one.look(time.monotonic())
        self._ending.wait()
