"""The statements of `queries/`, by name. Each file holds those of one module, under a line ``-- name: …`` each.

The comments below that line say what a statement is for: transition, guard, caller, rows, lock order. They are not
sent to the server.

Where two sets of thousands of rows meet, the planner must have no choice that a wrong estimate makes quadratic; of a
new job it estimates one row. So a guard stands beside a join, read from the row as it is locked; items of one job are
joined by its id as a column; a lookup row by row says OFFSET 0; a set without an index is hashed, by NOT IN or
IN … IS TRUE. `tests/integration/sql/test_stale_statistics.py` holds the statements that it lists to that.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any, LiteralString

QUERIES = Path(__file__).parent / "queries"
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def statement(name: str) -> LiteralString:
    """The text of the statement without its comments; raises KeyError for an unknown name."""
    return _statements()[name]


def documented() -> dict[str, str]:
    """Every statement by name, with its comments. Raises ValueError where two have the same name."""
    found: dict[str, str] = {}
    for path in sorted(QUERIES.glob("*.sql")):
        _, *parts = _NAME.split(path.read_text(encoding="utf-8"))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in found:
                raise ValueError(f"two statements are called {name}, one of them in {path.name}")
            found[name] = text.strip("\n") + "\n"
    return found


@cache
def _statements() -> dict[str, LiteralString]:
    # mypy takes a LiteralString for a str; psycopg wants one, and a file of this package is as much a literal.
    return {
        name: "\n".join(line for line in text.splitlines() if not line.startswith("--"))
        for name, text in documented().items()
    }


def only(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The row of a statement that always gives one; raises RuntimeError for None."""
    if row is None:
        raise RuntimeError("the database gave no row where there must be one; was a row deleted by hand?")
    return row
