"""The statements of `queries/`, by name. A file holds the statements of one module, each below a line ``-- name: …``.

The comments below that line say what a statement is for: transition, guard, caller, rows, lock order. They are not
sent to the server. A part that several statements share is below a line ``-- part: …``, and {…} in a statement stands
for it; the name of a class of `rows` in such braces stands for a table of these rows.

Where two sets of thousands of rows meet, the planner must have no choice that a wrong estimate makes quadratic; of a
new job it estimates one row. So a guard stands beside a join, read from the row as it is locked; items of one job are
joined by its id as a column; a lookup row by row says OFFSET 0; a set without an index is hashed, by NOT IN or
IN … IS TRUE. `tests/integration/sql/test_stale_statistics.py` holds the statements that it lists to that.
"""

import re
from functools import cache
from pathlib import Path
from typing import LiteralString, TypeVar

from callboard.sql import arrays, rows

T = TypeVar("T")
QUERIES = Path(__file__).parent / "queries"
_HEAD = re.compile(r"^-- (name|part): (\w+)$", re.MULTILINE)
_PART = re.compile(r"\{(\w+)\}")


def statement(name: str) -> LiteralString:
    """Return the text of a statement without its comments. Raises KeyError for an unknown name."""
    return _statements()[name]


def documented(kind: str = "name") -> dict[str, str]:
    """Return every statement (or every "part") with its comments, by name. Raises ValueError for two of one name."""
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

    # mypy takes a LiteralString for a str; psycopg wants one, and a file of this package is as much a literal.
    return {name: filled(_bare(text)) for name, text in documented().items()}


def _bare(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))


def required(row: T | None) -> T:
    """Return the row of a statement that always gives one. Raises RuntimeError for None."""
    if row is None:
        raise RuntimeError("the database gave no row where there must be one; was a row deleted by hand?")
    return row
