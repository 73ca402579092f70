"""What the tests of statements share; those that need another connection make their own."""

from collections.abc import Iterator

import pytest

from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from tests.support.jobs import let_workers_last


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
