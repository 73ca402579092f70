"""A streaming replica of a PostgreSQL on this machine."""

import shutil
from pathlib import Path

import psycopg

from callboard.commands.services import NotStarted, Process, Server, wait_until
from callboard.commands.services.postgres_data import embedded, give, user_for
from tests.support.services import postgres_programs

SECONDS = 300.0


def follow(primary: Server, server: Server) -> None:
    """Give a server that does not run the data of a running one, and start it as its replica, which streams then."""
    programs = postgres_programs() or embedded()
    data, log = server.folder / "postgres", server.folder / "copy.log"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(mode=0o700, parents=True)
    user = user_for(server.folder, programs)
    give(data, user)
    command = [
        str(programs / "pg_basebackup"), "--pgdata", str(data), "--dbname", f"host={primary.sockets} user=postgres",
        "--write-recovery-conf", "--checkpoint=fast", "--no-sync",
    ]  # fmt: skip
    copying = Process(command, log=log, cwd=Path("/"), user=user).start()
    wait_until(lambda: not copying.running(), SECONDS)
    if copying.kill() != 0:
        raise NotStarted(f"pg_basebackup failed:\n{log.read_text(encoding='utf-8')}")
    server.start()
    if not wait_until(lambda: is_followed(primary), SECONDS):
        raise NotStarted(f"the replica does not follow; see {server.log}")


def is_followed(primary: Server) -> bool:
    """Whether a replica streams from it."""
    return ask(primary, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 1


def promote(server: Server) -> None:
    """Make a replica a primary; it takes writes when this returns."""
    assert ask(server, f"SELECT pg_promote(true, {SECONDS:.0f})") is True


def configure(server: Server, **values: str) -> None:
    """Change settings of a running server."""
    for name, value in values.items():
        ask(server, f"ALTER SYSTEM SET {name} = '{value}'")
    ask(server, "SELECT pg_reload_conf()")


def ask(server: Server, query: str) -> object:
    """The first value that a query gives."""
    with psycopg.connect(server.url, autocommit=True) as conn:
        done = conn.execute(query.encode())
        row = done.fetchone() if done.description else None
    return row and row[0]
