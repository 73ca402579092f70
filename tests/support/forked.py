"""Starts `dramatiq`, `callboard` and programs of the tests in a fork of a process that has imported what they need.

Measured: a start takes 0.11 s of processor time, and 0.45 s with an interpreter of its own. The started process is as
real: it has a pid, a group, a folder and an environment of its own, the arguments of a command line, and a log; it is
killed, stopped and waited for like any other.

`python -m tests.support.forked FD PROGRAM` is the process that forks; it ends with the process at the other end of its
socket.
"""

import array
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from callboard.commands.services.child_process import Process
from callboard.commands.services.exec_as import SET_DEATH_SIGNAL, prctl

CALLBOARD = "callboard.commands.main"
#: The programs, and what is imported before the forks. None of it reads the environment as it is imported, but for the
#: variables of `ALONE`, and none starts a thread.
PROGRAMS = {
    "dramatiq": (
        "dramatiq.cli", "callboard", "callboard.middleware.install", "callboard.middleware.tracking",
        "tests.faults.rig.run_log",
    ),
    CALLBOARD: (CALLBOARD, "typer.rich_utils", "pydantic.type_adapter"),
}  # fmt: skip
#: Programs of the tests that need what another one imports: the process that forks that one forks these, too.
ALIKE = {
    "tests.faults.rig.dying_command": CALLBOARD, "tests.faults.rig.submitter": CALLBOARD,
    "tests.faults.soak.sender": CALLBOARD, "tests.support.script": CALLBOARD,
}  # fmt: skip
#: What the process that forks has in its environment.
ENVIRONMENTS = {"dramatiq": {"PYTHONWARNINGS": "default"}, CALLBOARD: {}}
#: A start with one of these variables, or of `dramatiq` with one of these arguments, is that of an interpreter of its
#: own.
ALONE = ("dramatiq_", "PROMETHEUS_", "PYTHONHASHSEED"), ("--path", "--use-spawn")
LARGEST_REQUEST = 1 << 18


class Forked:
    """A started process, with what `Process` uses of `subprocess.Popen`."""

    def __init__(self, forks: "Forks", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks = forks

    def poll(self) -> int | None:
        """Its exit code, minus the signal that ended it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._forks.ended(self.pid, 0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self.returncode = self._forks.ended(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self.returncode


class Forks:
    """The process that forks a program, as this process knows it. Threads may use it side by side."""

    def __init__(self, program: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), program]
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **ENVIRONMENTS[program]}
        self._process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._socket = ours
        self._codes: dict[int, int] = {}
        self._started: list[int] = []
        self._over = False
        self._news = threading.Condition()
        threading.Thread(target=self._listen, name="forks", daemon=True).start()
        self._starting = threading.Lock()

    def start(
        self,
        program: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        streams: tuple[int, int, int],
    ) -> Forked:
        """Start a program with these arguments, this environment, in this folder, and with these file descriptors as
        standard input, output and error.

        Raises RuntimeError if the process that forks has ended.
        """
        request = json.dumps([[program, *arguments], dict(env), str(folder)]).encode()
        with self._starting:
            self._socket.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
            with self._news:
                self._news.wait_for(lambda: self._started or self._over)
                if self._over:
                    raise RuntimeError("the process that forks has ended")
                return Forked(self, self._started.pop())

    def ended(self, pid: int, timeout: float | None) -> int | None:
        """The exit code of a process; None if it does not end within these seconds (None: however long it takes)."""
        with self._news:
            self._news.wait_for(lambda: pid in self._codes or self._over, timeout)
            return self._codes.get(pid)

    def close(self) -> None:
        """End it, and the processes that it has started."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait()
        self._socket.close()

    def _listen(self) -> None:
        while message := self._socket.recv(64):
            pid, code = json.loads(message)
            with self._news:
                if code is None:
                    self._codes.pop(pid, None)  # of an earlier process with this pid
                    self._started.append(pid)
                else:
                    self._codes[pid] = code
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


class ForkedProcess(Process):
    """`Process` for `python -m PROGRAM …`. What needs an interpreter of its own gets one."""

    def start(self) -> "ForkedProcess":
        """See `Process`."""
        _, _, program, *arguments = map(str, self.command)
        env = self.env or {}
        if alone(program, arguments, env):
            return super().start()
        self._asked = False
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            streams = nothing.fileno(), log.fileno(), log.fileno()
            started: Any = forks(program).start(program, arguments, env, self.cwd or Path.cwd(), streams)
        self.child = started
        return self


def start(
    program: str, arguments: Sequence[str], env: Mapping[str, str], folder: Path, streams: tuple[int, int, int]
) -> "Forked | subprocess.Popen[bytes]":
    """Start `python -m PROGRAM …` as `Forks.start` does, and what needs an interpreter of its own with one."""
    if not alone(program, arguments, env):
        return forks(program).start(program, arguments, env, folder, streams)
    stdin, stdout, stderr = streams
    command = [sys.executable, "-m", program, *arguments]
    return subprocess.Popen(command, env=env, cwd=folder, stdin=stdin, stdout=stdout, stderr=stderr)


def alone(program: str, arguments: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether a start needs an interpreter of its own."""
    names, options = ALONE
    return (
        sys.platform != "linux"
        or any(name.startswith(names) for name in env)
        or (program == "dramatiq" and not set(options).isdisjoint(arguments))
    )


def forks(program: str) -> Forks:
    """The one of this process for a program; it is started when that is started first."""
    return _forks(ALIKE.get(program, program))


@cache
def _forks(program: str) -> Forks:
    made = Forks(program)
    _made.append(made)
    return made


_made: list[Forks] = []


def close_forks() -> None:
    """End the processes that fork, and the processes that these have started."""
    while _made:
        _made.pop().close()


# In the process that forks -------------------------------------------------------------------------------------------


def serve(number: int) -> list[str]:
    """Fork for each request that comes, and tell how each child ended; ends with the socket.

    Returns in each child, with its program and the arguments of its command line.
    """
    connection = socket.socket(fileno=number)
    ready = selectors.DefaultSelector()
    ready.register(connection, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is not connection:
                _tell_end(connection, key.data)
                ready.unregister(key.fileobj)
                os.close(key.fd)
                continue
            request, streams, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
            if not request:
                connection.close()
                sys.exit()
            arguments, env, folder = json.loads(request)
            waits, done = os.pipe()
            pid = os.fork()
            if not pid:
                os.setsid()
                os.close(done)
                ready.close()
                connection.detach()
                _become(env, folder, streams)
                return [str(one) for one in arguments]
            for stream in (*streams, done):
                os.close(stream)
            os.read(waits, 1)  # until it has a group of its own: a SIGKILL to the group would be lost before
            os.close(waits)
            ready.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            connection.send(json.dumps([pid, None]).encode())


def _tell_end(connection: socket.socket, pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    connection.send(json.dumps([pid, os.waitstatus_to_exitcode(status)]).encode())


def _become(env: Mapping[str, str], folder: str, streams: Sequence[int]) -> None:
    """Be a process as if it had been started by itself."""
    prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 1024)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    if path := env.get("PYTHONPATH"):
        sys.path[1:1] = path.split(os.pathsep)


def main() -> None:
    """Import, then serve; in a child, be the program."""
    number, program = sys.argv[1:]
    for module in PROGRAMS[program]:
        importlib.import_module(module)
    sys.modules.pop(CALLBOARD, None)  # or Python warns that it runs it a second time
    gc.freeze()
    program, *sys.argv[1:] = serve(int(number))
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
