"""What the tests of statements share; those that need another connection make their own."""

from collections.abc import Iterator

import pytest

from callboard.sql import reads
from callboard.sql.pool import Conn, connect


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    """A connection to this test's database, in which nothing drifts."""
    with connect(database_url) as connection:
        yield connection
        assert reads.run(connection, reads.verify())["drift"] == []
