"""The statements of `queries/`, one a file, by name. A header of comments says what each is for; it isn't sent.

Where two sets of thousands meet, the planner gets no choice that a wrong guess makes quadratic, and of a new job its
guess is one row: a guard stands beside the join, read from the row as it is locked; items of one job are joined by its
id as a column; what is looked up one by one says OFFSET 0; what has no index is hashed, by NOT IN or IN … IS TRUE. What
`tests/integration/test_guesses.py` tries is held to that; `recount`, of many jobs at once, is not.
"""

from functools import cache
from pathlib import Path
from typing import LiteralString

QUERIES = Path(__file__).parent / "queries"


@cache
def statement(name: str) -> LiteralString:
    """The text of ``queries/<name>.sql`` without its header; raises FileNotFoundError for a name that has no file."""
    lines = (QUERIES / f"{name}.sql").read_text(encoding="utf-8").splitlines()
    # mypy takes a LiteralString for a str; psycopg wants one, and a file of this package is as much a literal.
    return "\n".join(line for line in lines if not line.startswith("--"))
