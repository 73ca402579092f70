"""Runs `callboard` as a user does, in a process and a folder of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread

from callboard.commands.services import Process, wait_until
from tests.support.forked import CALLBOARD, ForkedProcess, start

COMMAND = (sys.executable, "-m", CALLBOARD)
#: Runs a command with these arguments in the process of the test: (exit code, stdout, stderr).
Call = Callable[..., tuple[int, str, str]]
#: Variables that would lead a command to other services than its test means.
FOREIGN = ("DATABASE_URL", "AMQP_URL", "CALLBOARD_")


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """This process's variables without addresses and settings, and the given ones."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**ours, "PYTHONUNBUFFERED": "1", **given}


def run(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, given: bytes = b"", timeout: float = 300,
    program: str = CALLBOARD,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run it to its end; or another of the programs of `forked`."""
    variables = environment(env or {})
    reading, writing = os.pipe()
    with TemporaryFile() as output, TemporaryFile() as errors:
        with os.fdopen(reading, "rb") as stdin:
            streams = stdin.fileno(), output.fileno(), errors.fileno()
            started = start(program, arguments, variables, folder, streams)

        def feed() -> None:
            with suppress(BrokenPipeError), os.fdopen(writing, "wb") as pipe:  # it may read nothing, or not all
                pipe.write(given)

        Thread(target=feed, name="stdin", daemon=True).start()  # a pipe that nobody reads holds up no timeout
        try:
            code = started.wait(timeout)
        except subprocess.TimeoutExpired:
            os.kill(started.pid, signal.SIGKILL)
            raise
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, code, output.read().decode(), errors.read().decode())


def fault(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, given: bytes = b"", code: int = 1
) -> str:
    """Run a command that must fail with this code and one line; return the line."""
    done = run(folder, *arguments, env=env, given=given)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("callboard: ")
    before = done.stderr.splitlines()[:-1]
    assert all(said.startswith(("broker: ", "database: ")) for said in before), done.stderr
    return last


#: Defines `peak()`: the most memory that a program has used, in MiB (`VmHWM`, proc(5)). The figure of `getrusage`
#: includes the memory of the program that started it.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM:"))
"""


@contextmanager
def running(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, until: str = "Callboard is at "
) -> Iterator[Process]:
    """Run it for a block, which begins when its output contains `until`."""
    log = folder / "output.log"
    log.unlink(missing_ok=True)
    process = ForkedProcess([*COMMAND, *arguments], log=log, env=environment(env or {}), cwd=folder).start()
    try:
        process.wait_ready(lambda: until in log.read_text(), 300)
        yield process
        process.stop(300)
    finally:
        process.kill()
        assert wait_until(lambda: not left(folder), 300), left(folder)


def left(folder: Path) -> list[str]:
    """The command lines of the live processes whose command line or working folder lies in `folder`."""
    lines = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = (place / "cwd").readlink()
        except OSError:
            continue
        if str(folder) in line or where.is_relative_to(folder):
            lines.append(line)
    return lines
