"""When a worker whose heartbeat has stopped is taken for dead: its open session is a sign of life."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from callboard.sql import timings
from callboard.sql.pool import Conn, connect
from callboard.sql.writes import workers
from tests.support.databases import with_database
from tests.support.jobs import make_worker
from tests.support.workers import wait_until


def silent(conn: Conn, worker: int, seconds: float) -> list[int]:
    """Who is dead when a worker has not beaten for so long."""
    since = "UPDATE callboard.workers SET beat_at = now() - make_interval(secs => %s) WHERE id = %s"
    conn.execute(since, (seconds, worker))
    return workers.dead_workers(conn)


@contextmanager
def beaten(conn: Conn, url: str) -> Iterator[int]:
    """A worker whose session, by this address, is open in the block."""
    worker = make_worker(conn)
    with connect(url) as session:
        workers.beat(session, worker, [])
        yield worker


@pytest.fixture
def late() -> float:
    return timings.DEAD_AFTER_SECONDS + 1


def test_a_silent_worker_whose_session_is_open_is_not_dead_yet(conn: Conn, database_url: str, late: float) -> None:
    with beaten(conn, database_url) as worker:
        assert silent(conn, worker, late) == []
        assert not workers.declare_dead(conn, worker)
        assert silent(conn, worker, timings.SILENT_SECONDS + 1) == [worker]
    assert wait_until(lambda: silent(conn, worker, late) == [worker], 300)
    assert workers.declare_dead(conn, worker)


def test_the_session_of_another_that_has_its_number_is_none(conn: Conn, database_url: str, late: float) -> None:
    with beaten(conn, database_url) as worker:
        conn.execute("UPDATE callboard.workers SET session_since = session_since - interval '1 s'")
        assert silent(conn, worker, late) == [worker]


def test_a_worker_behind_a_pooler_has_no_session(conn: Conn, database_url: str, pooler_url: str, late: float) -> None:
    """The pooler keeps it open whatever becomes of the worker."""
    with beaten(conn, with_database(pooler_url, urlsplit(database_url).path[1:])) as worker:
        assert silent(conn, worker, late) == [worker]
