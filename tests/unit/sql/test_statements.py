"""The statements: each has a name and comments, is used by exactly one function, and stands in its module's file."""

import ast
import re
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from callboard.sql import timings
from callboard.sql.reads import queries
from callboard.sql.statements import QUERIES, documented, execute, statement
from tests.support.paths import ROOT

STATEMENTS = documented()
#: A statement that is long enough for a file of its own.
OWN_FILE = {"record": "record"}
#: Read by several: a migrating process asks in its transaction, a reader describes the query for either colour.
SHARED = {
    "applied_migrations": {"migrate._applied", "queries.migrations"},
    "jobs_by_id": {"queries.job", "queries.ended_job", "queries.jobs_by_id"},
}
#: The functions that take the name of a statement, the first of them alone, the others after the connection.
RUNNERS = {"statement", "execute", "fetch", "fetch_one", "fetch_value", "fetch_ids", "gives_row"}
#: Those that describe a query, by a name that may have been given to them.
DESCRIBE = {"Query", "_latest"}
FILES = {"queries": "reads"}
#: Reads that count items: a recount, and those of a retry that are named one by one.
COUNTING = {"recount", "retried_items"}


def calls(path: Path) -> list[tuple[str, str]]:
    """(statement, function) of each call that runs a statement, or describes a query, by its literal name."""
    found = []
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            given: list[ast.expr] = []
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RUNNERS:
                    names = [one for one in node.args if isinstance(one, ast.Constant)]
                    assert len(names) == 1 or ast.unparse(node) == "statement(query.name)", ast.unparse(node)
                    given += names
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DESCRIBE:
                    given.append(node.args[0])
                elif function.name == "_source" and isinstance(node, ast.Tuple):
                    given += node.elts
            literal = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            found += [(name, f"{path.stem}.{function.name}") for name in literal]
    return found


USES = [use for path in sorted((ROOT / "sql").rglob("*.py")) if path.stem != "statements" for use in calls(path)]


def test_every_statement_is_used_by_exactly_one_function() -> None:
    users = {name: {user for used, user in USES if used == name} for name in STATEMENTS}
    for name in STATEMENTS:
        assert len(users[name]) == 1 or users[name] == SHARED.get(name), (name, users[name])


def test_every_statement_that_is_used_exists() -> None:
    assert {name for name, _ in USES} == set(STATEMENTS)


def test_a_statement_stands_in_the_file_named_as_the_module_that_calls_it() -> None:
    for name, user in USES:
        module = user.partition(".")[0]
        file = OWN_FILE.get(name, FILES.get(module, module))
        if name in SHARED and module == "queries":
            continue
        text = (QUERIES / f"{file}.sql").read_text(encoding="utf-8")
        assert f"-- name: {name}\n" in text, (name, file)


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_a_statement_begins_with_what_it_is_for_and_is_one(name: str) -> None:
    comments = [line for line in STATEMENTS[name].splitlines() if line.startswith("--")]
    assert comments
    assert STATEMENTS[name].startswith(comments[0])
    assert "Caller" in "\n".join(comments)
    body = statement(name)
    assert not body.startswith("--")
    if "DO $$" not in body:
        assert ";" not in body


def test_every_part_is_used_more_than_once_and_none_is_left_in_a_statement() -> None:
    parts = documented("part")
    for name in parts:
        texts = (*STATEMENTS.values(), *parts.values())
        assert sum(text.count(f"{{{name}}}") for text in texts) > 1, name
    assert not [name for name in STATEMENTS if re.search(r"\{\w+\}", statement(name))]


def test_a_parameter_in_capitals_is_a_constant_of_timings() -> None:
    used = {name for text in map(statement, STATEMENTS) for name in re.findall(r"%\(([A-Z_]+)\)s", text)}
    assert used
    assert used <= vars(timings).keys()


def test_a_timing_that_is_changed_reaches_writes_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tests and rigs need it that set one."""
    conn = MagicMock()
    cursor = conn.cursor.return_value.__enter__.return_value
    for seconds in (60.0, 61.0):
        monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", seconds)
        execute(conn, "lock_succeeding")
        queries.run(conn, queries.job(1))
        for sent in (conn.execute, cursor.execute):
            assert sent.call_args.args[1]["LOCK_WAIT_SECONDS"] == seconds


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        statement("no_such_statement")


def selects(text: str) -> list[str]:
    """The parts of a statement, each without those in parentheses."""
    text, found = text.replace("count(*)", "counted"), []
    while inner := re.search(r"\(([^()]*)\)", text):
        alone = re.match(r"\s*(SELECT|WITH|UPDATE|INSERT|DELETE)\b", inner[1])
        found += [inner[1]] if alone else []
        text = text[: inner.start()] + ("" if alone else f" {inner[1]} ") + text[inner.end() :]
    return [*found, text]


def test_no_read_counts_items() -> None:
    """A job of ten million items costs what one of ten costs: its numbers are in its row."""
    read = {name for name, user in USES if user.startswith("queries.")}
    counted = {
        name
        for name in read
        for part in selects(statement(name))
        if "counted" in part and re.search(r"(FROM|JOIN|,) callboard\.items\b", part)
    }
    assert counted == COUNTING
