"""An embedded PostgreSQL: the server out of a wheel, reached through a socket only its owner may use.

It listens on no port, so any number of them run side by side. PostgreSQL refuses to run as root: root's runs
as `nobody`, and still only root may connect (peer authentication).
"""

import os
import pwd
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psycopg

from callboard.commands.services.child_process import NotStarted, Process, User
from callboard.commands.services.postgres_data import embedded, give, initialised, user_for, write_access

START_TIMEOUT = 60.0
# A socket's path as macOS allows it (Linux: 107), less the name of the socket's lock file.
LONGEST_FOLDER = 103 - len("/.s.PGSQL.5432.lock")
STOP_TIMEOUT = 30.0
#: How often it is started while a former one's sessions hold its memory, and seconds in between.
TRIES, PAUSE = 20, 0.5


class Server:
    """A PostgreSQL server on a folder, which it makes and keeps; its URL stays as it starts again."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        users: Sequence[str] = (),
        programs: Path | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.log = self.folder / "postgres.log"
        self.settings = settings or {}
        self.programs = programs
        self.users = [pwd.getpwuid(os.geteuid()).pw_name, *users]
        self.sockets = _sockets(self.folder)
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """The URL of the database `postgres`."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets), safe='')}"

    def start(self) -> Self:
        """Start it and wait until it answers. Raises `NotStarted`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        programs = self.programs or embedded()
        user = user_for(self.folder, programs)
        data = initialised(self.folder, programs, user)
        write_access(data, self.users)
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        give(self.sockets, user)
        for left in reversed(range(TRIES)):
            try:
                return self._start(programs, data, user)
            except NotStarted as error:
                # The sessions of one that was killed outlive it for a moment.
                if not left or "shared memory block" not in str(error):
                    raise
                time.sleep(PAUSE)
        raise AssertionError  # the last try returned or raised

    def _start(self, programs: Path, data: Path, user: User | None) -> Self:
        self._process = Process(
            [programs / "postgres", *_options(data, self.sockets, self.settings)],
            log=self.log,
            cwd=Path("/"),
            user=user,
            farewell=signal.SIGINT,  # PostgreSQL's fast shutdown: end sessions, write a checkpoint
        ).start()
        self._process.wait_ready(self._ready, START_TIMEOUT)
        return self

    def running(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.running()

    def stop(self) -> None:
        """End all sessions and stop it in order."""
        if self._process is not None:
            self._process.stop(STOP_TIMEOUT)

    def kill(self) -> None:
        """Stop it with SIGKILL, as a power cut would."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Stop it for good."""
        self.stop()
        # A folder that isn't empty is in use by another server.
        with suppress(OSError):
            self.sockets.rmdir()

    def _ready(self) -> bool:
        # Another server on the same folder would answer too, until ours has noticed it and given up.
        try:
            pid = (self.folder / "postgres" / "postmaster.pid").read_text(encoding="ascii").partition("\n")[0]
        except FileNotFoundError:
            return False
        return self._process is not None and pid == str(self._process.pid) and _answers(self.url)


@contextmanager
def postgres(
    folder: Path,
    *,
    settings: Mapping[str, str] | None = None,
    users: Sequence[str] = (),
    programs: Path | None = None,
) -> Iterator[Server]:
    """Run PostgreSQL on `folder`, which it makes and keeps.

    `settings` are server settings; `users` are system users that may connect besides the one who starts it;
    `programs` is the folder of another PostgreSQL's `initdb` and `postgres`, instead of the wheel's.
    Raises `NotStarted`, also when another one runs on the same folder.
    """
    server = Server(folder, settings=settings, users=users, programs=programs)
    try:
        yield server.start()
    finally:
        server.close()


def _sockets(folder: Path) -> Path:
    """Where the socket goes: beside the data, or into a short folder if that path won't do for a socket."""
    near = folder / "sockets"
    # libpq takes a comma for the end of a host.
    fits = len(os.fsencode(near)) <= LONGEST_FOLDER and "," not in str(near) and '"' not in str(near)
    return near if fits else Path(tempfile.mkdtemp(prefix="callboard-", dir="/tmp"))


def _options(data: Path, sockets: Path, settings: Mapping[str, str]) -> list[str]:
    fixed = {"listen_addresses": "", "unix_socket_directories": f'"{sockets}"'}
    return ["-D", str(data), *(f"--{name}={value}" for name, value in {**settings, **fixed}.items())]


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
