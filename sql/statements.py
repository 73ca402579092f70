"""The statements of `queries/`, one a file, by name. A header of comments says what each is for; it isn't sent."""

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
