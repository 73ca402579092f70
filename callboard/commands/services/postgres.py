"""An embedded PostgreSQL: the server from a wheel, with a Unix socket that only its owner may use.

It listens on no TCP port, so any number of servers can run side by side. PostgreSQL refuses to run as root, so root's
server runs as `nobody`, and still only root may connect (peer authentication).
"""

import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psycopg

from callboard.commands.services.child_process import NotStarted, Process
from callboard.commands.services.postgres_data import embedded, give, initialised, own_name, user_for, write_access

START_SECONDS = 60.0
#: Maximum number of starts while sessions of a killed server keep its shared memory, and seconds between two starts.
STARTS, PAUSE_SECONDS = 20, 0.5
# The maximum length of a socket path on macOS (Linux: 107), minus the name of the socket's lock file.
LONGEST_FOLDER = 103 - len("/.s.PGSQL.5432.lock")


class Server(Process):
    """A PostgreSQL server with its data in a folder, which it creates and keeps.

    `settings` are server settings. `users` are system users that may connect besides the one who starts it. `programs`
    is the folder of another PostgreSQL's `initdb` and `postgres`, instead of the wheel's. The URL stays the same after
    a restart.
    """

    def __init__(
        self, folder: Path, *, settings: Mapping[str, str] | None = None, users: Sequence[str] = (),
        programs: Path | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder.resolve()
        # SIGINT is PostgreSQL's fast shutdown: it ends sessions and writes a checkpoint.
        super().__init__(["postgres"], log=self.folder / "postgres.log", cwd=Path("/"), farewell=signal.SIGINT)
        self.sockets = _sockets(self.folder)
        self._settings = settings or {}
        self._programs = programs
        self._users = users

    @property
    def url(self) -> str:
        """The URL of the database `postgres`."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets), safe='')}"

    def start(self) -> Self:
        """Start it and wait until it answers. Raises NotStarted, also if another server uses the same folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        programs = self._programs or embedded()
        self.user = user_for(self.folder, programs)
        name = own_name()
        data = initialised(self.folder, programs, self.user)
        write_access(data, [name, *self._users])
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        give(self.sockets, self.user)
        fixed = {"listen_addresses": "", "unix_socket_directories": f'"{self.sockets}"'}
        options = [f"--{name}={value}" for name, value in {**self._settings, **fixed}.items()]
        self.command = [programs / "postgres", "-D", data, *options]
        for left in reversed(range(STARTS)):
            try:
                super().start().wait_ready(self._ready, START_SECONDS)
                break
            except NotStarted as error:
                if not left or "shared memory block" not in str(error):
                    raise
                time.sleep(PAUSE_SECONDS)
        return self

    def close(self) -> None:
        """Stop it for good."""
        super().close()
        # This fails if another server uses the folder, because it is not empty then.
        with suppress(OSError):
            self.sockets.rmdir()

    def _ready(self) -> bool:
        # Another server on the same folder would also answer, until this one has detected it and ended.
        try:
            # As bytes, because the path of the folder is in it.
            pid = (self.folder / "postgres" / "postmaster.pid").read_bytes().partition(b"\n")[0]
            if pid != str(self.pid).encode():
                return False
            psycopg.connect(self.url, connect_timeout=5).close()
        except (FileNotFoundError, psycopg.OperationalError):
            return False
        return True


def _sockets(folder: Path) -> Path:
    """Return the folder of the socket: beside the data, or a short one under /tmp if the path does not fit a socket."""
    near = folder / "sockets"
    # For libpq a comma ends a host.
    fits = len(os.fsencode(near)) <= LONGEST_FOLDER and "," not in str(near) and '"' not in str(near)
    return near if fits else Path(tempfile.mkdtemp(prefix="callboard-", dir="/tmp"))
