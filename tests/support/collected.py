"""Forks the processes of pytest-xdist from one that has imported the tests, so that this is done once a run.

`python -m tests.support.collected FD FOLDER PATH…` is the process that forks. It collects the tests in these paths, as
seen from the folder, then takes connections at the listening socket FD, and ends with its standard input. `python -I -S
collected.py SOCKET …` is what execnet starts: it hands its streams over to a fork, and ends with that.
"""

import gc
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: The exit code of pytest when it has collected no test.
NO_TESTS = 5
#: What a process of execnet's runs first.
EXECNET = "import sys; exec(eval(sys.stdin.readline()))"


class Collected:
    """The process that forks. `folder` gets its socket."""

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        self._address = str(folder / "collected")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen(64)
            command = [sys.executable, "-m", __name__, str(listener.fileno()), str(Path.cwd()), *paths]
            env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}  # it may have `-n`
            self._process = subprocess.Popen(
                command, env=env, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
            )  # fmt: skip

    @property
    def python(self) -> str:
        """What stands for the Python interpreter in a specification of execnet's."""
        return shlex.join([sys.executable, "-I", "-S", __file__, self._address])

    def close(self) -> None:
        """End it. Its forks go on."""
        self._process.communicate()


def fork(listener: socket.socket) -> None:
    """Fork for each connection; returns in each child, which has the streams that came over it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        ready, _, _ = select.select([listener.fileno(), 0], [], [])
        if listener.fileno() not in ready:
            sys.exit()
        connection, _ = listener.accept()
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        if not os.fork():
            listener.close()
            connection.detach()  # it closes with this process
            break
        connection.close()
        for stream in streams:
            os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


def serve(number: int, folder: str, paths: Sequence[str]) -> None:
    """Collect, then fork; be a process of execnet's in each child."""
    os.chdir(folder)
    sys.argv[1:] = ["--collect-only", "-qq", *paths]
    code: Any = 0
    try:
        runpy.run_module("pytest", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, and pytest takes it again in each child
    fork(socket.socket(fileno=number))
    if code not in (0, NO_TESTS):
        # A module that can't be imported stays in `sys.modules` as far as it came, and would have no tests here. An
        # interpreter of its own tells why.
        os.execv(sys.executable, [sys.executable, "-u", "-c", EXECNET])
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
    exec(EXECNET, {"__name__": "__main__"})  # noqa: S102


def stand_for_a_fork(address: str) -> None:
    """Hand this process's streams over to a fork, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the fork ends when its tests have
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            socket.send_fds(connection, [b"s"], [0, 1, 2])
            connection.recv(1)
        except OSError as error:
            sys.exit(f"callboard: the process that collects the tests has ended ({error}); `pytest -n 0` may say why")


if __name__ == "__main__":
    if __package__:
        serve(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
    else:
        stand_for_a_fork(sys.argv[1])
