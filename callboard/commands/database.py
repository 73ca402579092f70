"""A command's connection to the database."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict

from callboard.commands.errors import CommandError, first_line
from callboard.sql.errors import WAITED_TOO_LONG, connect_advice
from callboard.sql.migrate import check
from callboard.sql.pool import Conn, connect, database_address

#: Seconds after which a command says what it waits for.
SILENT_SECONDS = 3.0


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
    """Convert a failed connection in its block to a CommandError that names the server, without a password. Prints that
    it waits for a connection after `SILENT_SECONDS`: a pooler without a free one gives none for two minutes, and is
    silent.
    """
    waiting = Timer(
        SILENT_SECONDS, lambda: typer.echo(f"callboard: waiting for a connection to {_place(url)}", err=True)
    )
    waiting.daemon = True
    waiting.start()
    try:
        yield
    except psycopg.OperationalError as error:
        if error.sqlstate is not None and WAITED_TOO_LONG not in str(error):
            raise
        advice = connect_advice(error)
        raise CommandError(f"can't reach {_place(url)}: {first_line(error)}; {advice}") from None
    finally:
        waiting.cancel()


def _place(url: str) -> str:
    parts = conninfo_to_dict(url)
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"the database at {host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"
