"""What the tests of statements share; those that need another connection make their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.commands.main import main
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from tests.support.jobs import let_workers_last
from tests.support.programs import Call


@pytest.fixture(autouse=True)
def lasting_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `let_workers_last`."""
    let_workers_last(monkeypatch)


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    """A connection to this test's database, in which nothing drifts."""
    with connect(database_url) as connection:
        yield connection
        assert queries.run(connection, queries.verify())["drift"] == []


@pytest.fixture
def call_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs a command in this process, in an empty folder and without a database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


@pytest.fixture
def call(call_alone: Call, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command in this process, on this test's database."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return call_alone
