"""Which job a publisher serves next: by statement, without a clock."""

from collections.abc import Iterator

import pytest

from callboard.sql import reads, writes
from callboard.sql.pool import Conn, connect
from tests.jobs import make_job, make_worker


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    """A connection to this test's database, in which nothing drifts."""
    with connect(database_url) as connection:
        yield connection
        assert reads.run(connection, reads.verify())["drift"] == []


def turn(conn: Conn, *, publish: int = 1) -> int | None:
    """The job that is served next, and gets so many items published; None: nobody is."""
    claim = writes.claim_bulk(conn)
    if claim is None:
        return None
    reached = claim.watermark + publish
    writes.publish_bulk(conn, claim, watermark=reached, published=publish, keep=False)
    return claim.job


# A gone actor -------------------------------------------------------------------------------------------------------


def test_a_job_whose_actor_no_living_worker_has_is_passed_over_until_one_comes(conn: Conn) -> None:
    gone, other = make_job(conn, 9, actor="gone", published=0), make_job(conn, 9, actor="work", published=0)
    had = make_worker(conn, "gone", "work")
    make_worker(conn, "work")
    assert {turn(conn), turn(conn)} == {gone, other}
    writes.stop_worker(conn, had)
    assert [turn(conn) for _ in range(3)] == [other] * 3
    assert writes.claim_bulk(conn, job=gone) is None
    make_worker(conn, "gone")
    assert gone in {turn(conn), turn(conn)}


@pytest.mark.parametrize("end", ["died_at = now()", "stopped_at = now()", "beat_at = now() - interval '1 h'"])
def test_with_no_worker_alive_jobs_are_published_as_deep_as_a_queue_may_be(conn: Conn, end: str) -> None:
    job = make_job(conn, 9, actor="gone", published=0)
    assert turn(conn) == job
    worker = make_worker(conn, "work")
    assert turn(conn) is None
    conn.execute(f"UPDATE callboard.workers SET {end} WHERE id = {worker}")  # type: ignore[call-overload]
    assert turn(conn) == job
