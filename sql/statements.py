"""The statements of `queries/`, by name. Each file holds those of one module, under a line ``-- name: …`` each.

The comments below that line say what a statement is for: transition, guard, caller, rows, lock order. They are not
sent to the server. A part that several statements share stands under ``-- part: …``, and where a statement says {…};
the name of a class of `rows` there is a table of such rows.

Where two sets of thousands of rows meet, the planner must have no choice that a wrong estimate makes quadratic; of a
new job it estimates one row. So a guard stands beside a join, read from the row as it is locked; items of one job are
joined by its id as a column; a lookup row by row says OFFSET 0; a set without an index is hashed, by NOT IN or
IN … IS TRUE. `tests/integration/sql/test_stale_statistics.py` holds the statements that it lists to that.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any, LiteralString

from callboard.sql import arrays, rows

QUERIES = Path(__file__).parent / "queries"
_HEAD = re.compile(r"^-- (name|part): (\w+)$", re.MULTILINE)
_PART = re.compile(r"\{(\w+)\}")


def statement(name: str) -> LiteralString:
    """The text of the statement without its comments; raises KeyError for an unknown name."""
    return _statements()[name]


def documented(kind: str = "name") -> dict[str, str]:
    """Every statement (or every "part") by name, with its comments. Raises ValueError where two have the same name."""
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

    def part(found: re.Match[str]) -> str:
        return parts.get(found[1]) or arrays.table(getattr(rows, found[1]))

    # mypy takes a LiteralString for a str; psycopg wants one, and a file of this package is as much a literal.
    return {name: _PART.sub(part, _bare(text)) for name, text in documented().items()}


def _bare(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))


def only(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The row of a statement that always gives one; raises RuntimeError for None."""
    if row is None:
        raise RuntimeError("the database gave no row where there must be one; was a row deleted by hand?")
    return row
