"""Where the database is, and a connection to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict

from callboard.commands.errors import CommandError, first_line
from callboard.sql.migrate import check
from callboard.sql.pool import Conn, connect, database_address


@contextmanager
def database() -> Iterator[Conn]:
    """A connection to a database whose schema fits this code."""
    url = database_address()
    with reach(url), connect(url) as conn:
        warning = check(conn)
        if warning:
            typer.echo(f"callboard: {warning}", err=True)
        yield conn


@contextmanager
def reach(url: str) -> Iterator[None]:
    """Says where there is no database, when there is none."""
    try:
        place = _place(url)
    except psycopg.ProgrammingError:
        # Its text repeats the address, with the password.
        raise CommandError(
            "DATABASE_URL is no address of a database: postgresql://user:password@host/name"
        ) from None
    try:
        yield
    except psycopg.OperationalError as error:
        if error.sqlstate is None:
            raise CommandError(
                f"can't reach the database at {place}: {first_line(error)}; {WHAT_TO_DO}"
            ) from None
        raise


WHAT_TO_DO = "start PostgreSQL, or correct DATABASE_URL"


def _place(url: str) -> str:
    parts = conninfo_to_dict(url)
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"{host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"
