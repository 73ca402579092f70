"""The attempts that a worker process is running, in a file that outlives the process. Most attempts end before they
have a row in `running`, so the database does not know which attempts a killed process was running.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from callboard.middleware.process.own_folder import own_folder
from callboard.sql.rows import Running

log = logging.getLogger("callboard.worker")

#: One attempt: its item, its number, when it began (monotonic time, which all processes of a host share), its job. The
#: job is written last: if it is not 0, the other fields are complete. 0: the place is free.
RUN = Struct("<iidq")
JOB = Struct("<q")
#: The most attempts in a file; one thread that runs a batch may have a thousand.
RUNS = 5_000
#: Seconds after which a file that was put off is read again.
LATER_SECONDS = 30.0
#: Days after which the file of a dead process is deleted, if no worker of its database has run on this host since.
KEPT_DAYS = 7


@dataclass(frozen=True, slots=True)
class DeadProcess:
    """A worker process of this host that died without closing its file, and the attempts that it was running."""

    path: Path
    worker: int
    pid: int
    running: list[Running]


class RunFile:
    """The file of this process's running attempts; nothing is recorded before `open` or after `close`. Thread-safe."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: BinaryIO | None = None  # stays open: to close it would release the lock
        self._map: mmap | None = None
        self._free: list[int] = []
        self._fresh = iter(range(RUNS))
        self._later: dict[str, float] = {}  # by file name: when the file is read again (monotonic)

    def open(self, schema: str, worker: int) -> None:
        """Record the running attempts of this process from now on. `schema` is the id of the database's schema.

        If the file can't be created, this logs why, and nothing is recorded.
        """
        name = _name(schema, worker)
        try:
            _delete_old(own_folder("runs"))
            try:
                self._create(own_folder("runs"), name)
            except FileNotFoundError:  # another process has just deleted the folder with its last file
                self._create(own_folder("runs"), name)
        except OSError as error:
            log.warning("if this worker is killed, its newest attempts are not recorded as crashes: %s", error)

    def _create(self, folder: Path, name: str) -> None:
        new = folder / f"new.{name}"
        try:
            new.write_bytes(bytes(RUNS * RUN.size))  # no sparse file: a write to a hole of a full disk is a SIGBUS
            file = new.open("r+b", buffering=0)
            # Not `flock`: a child process would keep the lock, and the lock would end after the connections are closed.
            # RabbitMQ must not redeliver a message while its process still seems to be alive.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._map = mmap(file.fileno(), 0)
            self._file = file
            _own.add(name)
            self._path = new.rename(folder / name)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def rename(self, schema: str, worker: int) -> None:
        """Rename the file after the process has registered again, as `worker` in the schema with the id `schema`."""
        if self._path is not None:
            new = self._path.with_name(_name(schema, worker))
            _own.add(new.name)
            with suppress(FileNotFoundError):  # a cleaner of temporary files may have deleted it
                self._path = self._path.rename(new)

    def begin(self, job: int, item: int, attempt: int) -> int | None:
        """Record that an attempt begins; return its place, for `end`, or None if the file is closed or full."""
        if (kept := self._map) is None:
            return None
        try:
            place: int | None = self._free.pop()
        except IndexError:
            place = next(self._fresh, None)
        if place is not None:
            RUN.pack_into(kept, place * RUN.size, item, attempt, time.monotonic(), job)
        return place

    def end(self, place: int | None) -> None:
        """Record that an attempt ended; `place` is the result of `begin`."""
        if place is not None and (kept := self._map) is not None:
            JOB.pack_into(kept, (place + 1) * RUN.size - JOB.size, 0)
            self._free.append(place)

    def dead(self) -> Iterator[DeadProcess]:
        """Yield the dead processes of this host that were workers on the same database. Each call yields them again
        until their files are deleted; those that are put off are left out for `LATER_SECONDS`.
        """
        if self._path is None:
            return
        folder, schema = self._path.parent, self._path.name.partition(".")[0]
        others = list[str]()
        with suppress(OSError), os.scandir(folder) as entries:  # a cleaner of temporary files may have deleted it
            others = [entry.name for entry in entries if entry.name.startswith(f"{schema}.") and entry.name not in _own]
        for name in others:
            if self._later.get(name, 0.0) > time.monotonic():
                continue
            worker, pid, started = map(int, name.split(".")[1:])
            if (content := _content(folder / name, pid, started)) is not None:
                yield DeadProcess(folder / name, worker, pid, _running(content))

    def put_off(self, dead: DeadProcess) -> None:
        """Leave a process out of `dead` for `LATER_SECONDS`: its items have not ended elsewhere yet."""
        self._later[dead.path.name] = time.monotonic() + LATER_SECONDS

    def close(self) -> None:
        """Delete the file, and the folder if it is empty: the process exits normally."""
        self._map = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):
                self._path.parent.rmdir()
            self._path = None
        if self._file is not None:
            self._file.close()
            self._file = None


#: The names of the files of this process. To open and close such a file would release its lock.
_own: set[str] = set()
os.register_at_fork(after_in_child=_own.clear)


def _name(schema: str, worker: int) -> str:
    """Return the name of the file of this process."""
    pid = os.getpid()
    return f"{schema}.{worker}.{pid}.{_started(pid)}"


def _content(path: Path, pid: int, started: int) -> bytes | None:
    """Return the content of a dead process's file. None if the process is alive, or the file can't be read, as when
    another process deletes it.
    """
    with suppress(OSError), path.open("rb") as file:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a live process has the lock
        # A live process may have lost its lock: code in it that reads and closes the file releases it.
        if not started or _started(pid) != started:  # 0: a system without /proc
            return file.read()
    return None


def _started(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if it has ended, or is exiting. See proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    state, flags, started = fields[0], int(fields[6]), int(fields[19])
    return 0 if state in "ZX" or flags & PF_EXITING else started


#: The flag of a process that is exiting: it closes its files before it disappears.
PF_EXITING = 4


def _running(content: bytes) -> list[Running]:
    now = time.monotonic()
    runs = RUN.iter_unpack(content[: len(content) // RUN.size * RUN.size])
    return [Running(job, item, attempt, max(now - began, 0.0), None) for item, attempt, began, job in runs if job]


def _delete_old(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(FileNotFoundError, ValueError):
            pid, started = map(int, path.name.split(".")[-2:])
            old = path.name not in _own and time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400
            if old and _content(path, pid, started) is not None:
                path.unlink()
