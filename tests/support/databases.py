"""Databases of a test server: one migrated template, copies of it for the tests."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from callboard.sql.migrate import migrate


def with_database(url: str, name: str) -> str:
    """The URL with another database's name in it."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


#: A connection of this process to each server: the first statement of a new one takes a third of what a copy takes.
#: Threads may share one: psycopg lets them take turns.
_connections: dict[str, psycopg.Connection] = {}


def execute(
    url: str, statement: LiteralString | sql.Composed, values: Sequence[Any] | None = None
) -> psycopg.Cursor[Any]:
    """Run one statement outside of a transaction; its cursor."""
    connection = _connection(url)
    try:
        return connection.execute(statement, values)
    except psycopg.OperationalError:  # the server was stopped since
        if not connection.closed:
            raise
        return _connection(url).execute(statement, values)


def _connection(url: str) -> psycopg.Connection:
    if url not in _connections or _connections[url].closed:
        _connections[url] = psycopg.connect(url, autocommit=True)
    return _connections[url]


def close_connections() -> None:
    """Close the connections by which databases are made and dropped."""
    while _connections:
        _connections.popitem()[1].close()


@contextmanager
def database(url: str, template: str = "template0") -> Iterator[str]:
    """A database of its own, copied from `template` and dropped at the end; gives its name.

    Its files are copied, with the cache that a first connection would otherwise make: since PostgreSQL 15 the copy goes
    through the log unless one asks for that, which takes twice the processor time.
    """
    name = f"callboard_{uuid.uuid4().hex}"
    version = _connection(url).info.server_version
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}" + (" STRATEGY FILE_COPY" if version >= 150_000 else ""))
    execute(url, create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield name
    finally:
        execute(url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


#: The rights of a role that may do what workers and submissions do.
WORKING = (
    "USAGE ON SCHEMA callboard",
    "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA callboard",
    "USAGE ON ALL SEQUENCES IN SCHEMA callboard",
)


@contextmanager
def clerk(conn: psycopg.Connection[Any], *rights: str) -> Iterator[str]:
    """A role of its own that owns nothing and has these rights in the database of `conn`; gives its name."""
    role = f"clerk_{uuid.uuid4().hex}"
    conn.execute(f"CREATE ROLE {role}".encode())
    try:
        for right in rights:
            conn.execute(f"GRANT {right} TO {role}".encode())
        yield role
    finally:
        conn.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}".encode())


def as_role(url: str, role: str) -> str:
    """The URL by which one is that role in each session."""
    return f"{url}&options=-c%20role%3D{role}"


@contextmanager
def migrated(url: str) -> Iterator[str]:
    """A migrated database to copy; gives its name. Nobody may be connected to it while it is copied."""
    with database(url) as name:
        migrate(with_database(url, name))
        yield name


def stored_columns(conn: psycopg.Connection[Any], table: str) -> str:
    """List in SQL the columns of a table of Callboard's that a statement may fill: those that are not generated."""
    query = """
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
    """
    row = conn.execute(query, [f"callboard.{table}"]).fetchone()
    assert row is not None
    return str(row[0])


def waits(url: str) -> bool:
    """Whether somebody waits for a lock in this database."""
    return waiting(url) > 0


def waiting(url: str) -> int:
    """How many wait for a lock in this database."""
    server, name = with_database(url, "postgres"), urlsplit(url).path[1:]
    asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    row = execute(server, asked, [name]).fetchone()
    return int(row[0]) if row else 0
