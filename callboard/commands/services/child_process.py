"""A child process that becomes ready, can be stopped, and ends when the process that started it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

EXEC_AS = Path(__file__).with_name("exec_as.py")
#: Seconds for a clean stop of a program.
STOP_SECONDS = 30.0


class NotStarted(RuntimeError):
    """A service did not become ready; the text ends with the last lines of its log."""


class User(NamedTuple):
    """The user of a child process. With `reach` it may read in folders of root (see exec_as)."""

    uid: int
    gid: int
    reach: bool = False


def wait_until(condition: Callable[[], object], timeout: float, *, pause: float = 0.02) -> bool:
    """Call `condition` every `pause` seconds; return whether it became true within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
    return True


def tail(path: Path, lines: int = 20) -> str:
    """Return the last lines of a log; empty if there is no log."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def last_line(path: Path) -> str:
    """Return the last line of a log; empty if there is none. Lines of Dramatiq's master process are used only if there
    are no others, because they give no reason.
    """
    lines = [line for line in tail(path).splitlines() if line.strip()]
    own = [line for line in lines if "[dramatiq.MainProcess]" not in line]
    return (own or lines or [""])[-1]


@dataclass
class Process:
    """A program in its own process group, with its output in a file; as a context manager it runs for a block.

    On Linux it gets the signal `farewell` when the *thread* that called `start` ends for any reason, so start services
    from the main thread. It gets the signal twice when a process of several threads is killed. Signals go only to the
    program, but `kill` goes to the whole group.
    """

    command: Sequence[str | Path]
    log: Path
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    user: User | None = None
    farewell: signal.Signals = signal.SIGTERM
    child: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _asked: bool = field(default=False, init=False)

    @property
    def pid(self) -> int:
        """The pid, which is also the id of its group."""
        if self.child is None:
            raise RuntimeError(f"{self.command[0]} was not started")
        return self.child.pid

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Start the program; its output is appended to the log."""
        self._asked = False
        user = self.user or User(-1, -1)
        terms = [str(int(term)) for term in (os.getpid(), self.farewell, user.uid, user.gid, user.reach)]
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-I", "-S", EXEC_AS, *terms, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if self.env is None else dict(self.env),
                cwd=self.cwd,
                start_new_session=True,
            )
        return self

    def running(self) -> bool:
        """Whether it is running."""
        return self.child is not None and self.child.poll() is None

    def wait_ready(self, ready: Callable[[], object], timeout: float) -> None:
        """Wait until `ready()` is true. If it ends before that, or after `timeout` seconds, kill its group and raise
        NotStarted.
        """
        wait_until(lambda: not self.running() or ready(), timeout)
        if self.running() and ready():
            return
        why = "did not become ready in time" if self.running() else "ended before it was ready"
        self.kill()
        raise NotStarted(f"{Path(self.command[0]).name} {why}; its log {self.log} ends:\n{tail(self.log)}")

    def ask_to_end(self) -> None:
        """Send the signal `farewell`, only once: at a second signal Dramatiq drops its running items."""
        if self.running() and not self._asked:
            self._asked = True
            self.send(self.farewell)

    def stop(self, timeout: float = STOP_SECONDS) -> int | None:
        """Ask it to end, and kill its group after `timeout` seconds. Return its exit code; None if it was never
        started.
        """
        self.ask_to_end()
        wait_until(lambda: not self.running(), timeout)
        return self.kill()

    def close(self) -> None:
        """Stop it for good."""
        self.stop()

    def kill(self) -> int | None:
        """Send SIGKILL to its group. Return its exit code; None if it was never started."""
        if self.child is None:
            return None
        self.send(signal.SIGKILL)
        return self.child.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program; SIGKILL goes to its whole group."""
        try:
            (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # It has ended; macOS raises PermissionError for a group of zombies.
            return
