"""The statements of `queries/`, by name. A file has the statements of one module, each below a line ``-- name: …``.

The comments below that line describe the statement: transition, guard, caller, rows, lock order. They are not sent to
the server. A part that several statements share is below a line ``-- part: …``, and is included by its name in braces;
the name of a class of `rows` in braces includes a table of these rows. A parameter in capitals is the constant of
`timings` with that name: no caller passes it.

Where two sets of thousands of rows are joined, no plan that the planner can choose may become quadratic after a wrong
estimate; for a new job it estimates one row. So guards are not join conditions: they are read from the row that is
locked. Items of one job are joined by its id as a column. A lookup per row uses OFFSET 0. A set without an index is
hashed, by NOT IN or IN … IS TRUE. `tests/integration/sql/test_stale_statistics.py` checks this for the statements that
it lists.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, LiteralString, TypeVar

from psycopg import Cursor

from callboard.sql import arrays, rows, timings
from callboard.sql.pool import Conn

T = TypeVar("T")
QUERIES = Path(__file__).parent / "queries"
_HEAD = re.compile(r"^-- (name|part): (\w+)$", re.MULTILINE)
_PART = re.compile(r"\{(\w+)\}")


def statement(name: str) -> LiteralString:
    """Return the text of a statement without its comments. Raises KeyError for an unknown name."""
    return _statements()[name]


def with_timings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return these parameters and the constants of `timings`."""
    return {**vars(timings), **parameters}


def execute(conn: Conn, name: str, /, **parameters: Any) -> Cursor[tuple[Any, ...]]:
    """Run a statement with these parameters."""
    return conn.execute(statement(name), with_timings(parameters))


def fetch(conn: Conn, row: Callable[..., T], name: str, /, **parameters: Any) -> list[T]:
    """Run a statement; return `row(*columns)` of each row."""
    return [row(*found) for found in execute(conn, name, **parameters)]


def fetch_one(conn: Conn, row: Callable[..., T], name: str, /, **parameters: Any) -> T | None:
    """Run a statement; return `row(*columns)` of its row, or None without one."""
    found = execute(conn, name, **parameters).fetchone()
    return None if found is None else row(*found)


def fetch_value(conn: Conn, name: str, /, **parameters: Any) -> Any:
    """Run a statement; return the first column of its row, or None without one."""
    found = execute(conn, name, **parameters).fetchone()
    return None if found is None else found[0]


def fetch_ids(conn: Conn, name: str, /, **parameters: Any) -> list[int]:
    """Run a statement; return the first column of its rows."""
    return [found[0] for found in execute(conn, name, **parameters)]


def gives_row(conn: Conn, name: str, /, **parameters: Any) -> bool:
    """Run a statement; return whether it returns a row."""
    return execute(conn, name, **parameters).fetchone() is not None


def lists(names: str, found: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    """Return rows as {column: values}, the parameters of a statement that unnests them; `names`: split at spaces."""
    kept = list(found)
    return {name: [row[place] for row in kept] for place, name in enumerate(names.split())}


def documented(kind: str = "name") -> dict[str, str]:
    """Return every statement (or every "part") with its comments, by name. Raises ValueError for a duplicate name."""
    found: dict[str, str] = {}
    for path in sorted(QUERIES.glob("*.sql")):
        _, *pieces = _HEAD.split(path.read_text(encoding="utf-8"))
        for what, name, text in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
            if what == kind and name in found:
                raise ValueError(f"two of a {kind} are called {name}, one of them in {path.name}")
            if what == kind:
                found[name] = text.strip("\n") + "\n"
    return found


@cache
def _statements() -> dict[str, LiteralString]:
    parts = {name: _bare(text) for name, text in documented("part").items()}

    def filled(text: str) -> str:
        return _PART.sub(part, text)

    def part(found: re.Match[str]) -> str:
        name = found[1]
        return filled(parts[name]) if name in parts else arrays.table(getattr(rows, name))

    # psycopg requires a LiteralString; a file of this package counts as one.
    return {name: filled(_bare(text)) for name, text in documented().items()}


def _bare(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))


def required(row: T | None) -> T:
    """Return the row of a statement that always returns one. Raises RuntimeError for None."""
    if row is None:
        raise RuntimeError("the database returned no row where there must be one; was a row deleted by hand?")
    return row
