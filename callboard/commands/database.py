"""A command's connection to the database."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict

from callboard.commands.errors import CommandError, first_line
from callboard.sql.errors import connect_advice
from callboard.sql.migrate import check
from callboard.sql.pool import Conn, connect, database_address


@contextmanager
def database() -> Iterator[Conn]:
    """Connect for a block. Raises CommandError, NotConfigured, and SchemaError for a schema that does not fit."""
    url = database_address()
    with reach(url):
        conn = connect(url)
    with conn:
        warning = check(conn)
        if warning:
            typer.echo(f"callboard: {warning}", err=True)
        yield conn


@contextmanager
def reach(url: str) -> Iterator[None]:
    """Convert a failed connection in its block to a CommandError that names the server, without a password."""
    try:
        yield
    except psycopg.OperationalError as error:
        if error.sqlstate is not None:
            raise
        parts = conninfo_to_dict(url)
        host = parts.get("host") or parts.get("hostaddr") or "localhost"
        place = f"{host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"
        advice = connect_advice(error)
        raise CommandError(f"can't reach the database at {place}: {first_line(error)}; {advice}") from None
