"""Errors that a user can fix, each as one line."""

import errno

import psycopg
from psycopg_pool import PoolTimeout

from callboard.commands.services import NotStarted
from callboard.sql.errors import REFUSALS, connect_advice, is_connection_lost, refusal
from callboard.sql.migrate import MISFIT, SchemaError
from callboard.sql.settings import NotConfigured
from callboard.sql.writes.requests import NoSuchItem, NotPossible

#: The errors of a database that can't be reached, or refuses a valid statement: `explain` has a line for each.
REFUSED: tuple[type[Exception], ...] = (psycopg.OperationalError, *REFUSALS)


class CommandError(Exception):
    """Ends a command with exit code `code` and with its message, which says what is wrong and what to do."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def explain(error: Exception) -> str | None:  # noqa: PLR0911, C901 — a return for each kind of error
    """Return the line for an error; None for a bug in Callboard."""
    if isinstance(error, (CommandError, SchemaError, NotConfigured, NotPossible, NoSuchItem)):
        return str(error)
    if isinstance(error, NotStarted):
        # Its text ends with lines of a log; the last line is enough.
        first, *rest = str(error).splitlines()
        return " ".join([first, *rest[-1:]])
    if isinstance(error, MISFIT):
        return "the database has no callboard schema that fits this code: run `callboard migrate`"
    if type(error) in REFUSALS:
        what, do = REFUSALS[type(error)]
        return f"{what}: {first_line(error)}; {do}"
    if isinstance(error, OSError) and error.strerror:
        what = "write the output" if error.errno == errno.ENOSPC else f"read or write {error.filename or 'a file'}"
        return f"can't {what}: {error.strerror}"
    if isinstance(error, PoolTimeout):
        return f"no connection to the database: {first_line(error)}; {connect_advice(error)}"
    if isinstance(error, psycopg.Error) and (text := refusal(error)):
        return text
    if isinstance(error, psycopg.OperationalError):
        lost = is_connection_lost(error)
        what = "the connection to the database was lost" if lost else "the database refused this"
        return f"{what}: {first_line(error)}; try again"
    return None


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its type if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
