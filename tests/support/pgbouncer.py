"""PgBouncer, mostly in transaction mode, in front of every database of a server."""

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from callboard.commands.services.child_process import NotStarted, Process, User

START_TIMEOUT = 300.0
NOBODY = "nobody"

#: By its defaults it looks for a server that is back every 15 s, and says for two minutes nothing to those who wait.
CONFIG = """\
[databases]
* = {server}
[pgbouncer]
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 500
server_login_retry = 1
query_wait_timeout = 5
auth_type = any
listen_addr =
unix_socket_dir = {folder}
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
"""


def program() -> str:
    """The path of PgBouncer, which Debian keeps out of an ordinary user's PATH."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        raise NotStarted("no PgBouncer here; `make test` installs it or says how")
    return found


@contextmanager
def pgbouncer(url: str, mode: str = "transaction", size: int = 20) -> Iterator[str]:
    """Run PgBouncer in front of the server of `url`, with `size` connections to each database; gives the URL of the
    same database through it.
    """
    parts = conninfo_to_dict(url)
    # It refuses to run as root, and must open the server's socket as someone whom the server lets in.
    account = pwd.getpwnam(NOBODY) if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="callboard-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        keys = ("host", "port", "user", "password")
        server = " ".join(f"{key}='{parts[key]}'" for key in keys if key in parts)
        config = folder / "pgbouncer.ini"
        config.write_text(CONFIG.format(server=server, folder=folder, mode=mode, size=size), encoding="utf-8")
        if account:
            os.chown(folder, account.pw_uid, account.pw_gid)
        user = User(account.pw_uid, account.pw_gid, reach=True) if account else None
        process = Process([program(), str(config)], log=folder / "output.log", user=user)
        through = f"postgresql://postgres@/{parts['dbname']}?host={quote(name, safe='')}&port=6432"
        try:
            process.start().wait_ready(lambda: answers(through), START_TIMEOUT)
            yield through
        finally:
            process.kill()


def answers(url: str) -> bool:
    """Whether one can log in there."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
