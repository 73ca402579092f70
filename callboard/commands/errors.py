"""Errors as one line: what, where, and what to do."""

import psycopg

from callboard.commands.services import NotStarted
from callboard.sql.migrate import ABSENT, SchemaError
from callboard.sql.settings import NotConfigured
from callboard.sql.writes.actions import NotPossible


class CommandError(Exception):
    """Something that its message explains in full; the command ends with `code`."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def explain(error: Exception) -> str | None:
    """The line for an error that a user can do something about; None for a bug of ours."""
    if isinstance(error, (CommandError, SchemaError, NotConfigured, NotPossible)):
        return str(error)
    if isinstance(error, NotStarted):
        # It ends with much of a log.
        first, *rest = str(error).splitlines()
        return " ".join([first, *rest[-1:]])
    if isinstance(error, ABSENT):
        return "the database has no callboard schema that fits this code: run `callboard migrate`"
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return f"the database refuses this user: {first_line(error)}; give it the right, or use another user"
    if isinstance(error, psycopg.OperationalError):
        return f"the connection to the database was lost: {first_line(error)}; try again"
    return None


def first_line(error: Exception) -> str:
    """The first line of an error's text, which may have many."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
