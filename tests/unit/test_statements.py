"""The statements: each file is one statement with a header, used by exactly one function."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from callboard.sql.statements import QUERIES, statement

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in QUERIES.glob("*.sql"))


def calls(path: Path) -> list[tuple[str, str]]:
    """(statement, function) of each call of `statement` with a literal name."""
    found = []
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in ast.walk(function):
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id == "statement"
                ):
                    assert isinstance(call.args[0], ast.Constant), f"{path}: {ast.unparse(call)}"
                    found.append((str(call.args[0].value), f"{path.stem}.{function.name}"))
    return found


USES = [
    use for path in sorted((ROOT / "sql").glob("*.py")) if path.stem != "statements" for use in calls(path)
]
#: Read by both: a migrating process asks in its transaction, a reader describes the query for either colour.
SHARED = {"applied_migrations": {"migrate._applied", "reads.migrations"},
          "jobs": {"reads.job", "reads.jobs", "reads.ended_job"},
          "create_job": {"writes.create_job", "writes._again"}}  # fmt: skip


def test_every_statement_is_used_by_exactly_one_function() -> None:
    users = {name: {user for used, user in USES if used == name} for name in NAMES}
    for name in NAMES:
        assert len(users[name]) == 1 or users[name] == SHARED.get(name), (name, users[name])


def test_every_statement_that_is_used_has_a_file() -> None:
    assert {name for name, _ in USES} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_begins_with_what_it_is_for_and_is_one(name: str) -> None:
    text = (QUERIES / f"{name}.sql").read_text(encoding="utf-8")
    assert text.startswith(f"-- {name}: ")
    assert "Caller" in text.partition("\n\n")[0]
    body = statement(name)
    assert not body.startswith("--")
    if "DO $$" not in body:
        assert Counter(body)[";"] == 0


def test_a_name_without_a_file_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        statement("no_such_statement")
