"""Which job a publisher serves next: by statement, without a clock."""

import pytest

from callboard.sql.pool import Conn
from callboard.sql.writes import actions, publishing, workers
from callboard.sql.writes.requests import Requester
from tests.support.jobs import make_job, make_worker, record


def turn(conn: Conn, *, publish: int = 1) -> int | None:
    """The job that is served next, and gets so many items published; None: nobody is."""
    claim = publishing.claim_bulk(conn)
    if claim is None:
        return None
    reached = claim.watermark + publish
    publishing.advance_watermark(conn, claim, watermark=reached, published=publish, keep=False)
    return claim.job


# Whose turn it is ---------------------------------------------------------------------------------------------------


def test_tenants_take_turns_however_many_jobs_they_have(conn: Conn) -> None:
    many = [make_job(conn, 9, published=0, tenant="many") for _ in range(4)]
    one, two = (make_job(conn, 9, published=0, tenant=name) for name in ("one", "two"))
    served = [turn(conn) for _ in range(12)]
    assert served == [many[0], one, two, many[1], one, two, many[2], one, two, many[3], one, two]


def test_the_jobs_of_a_tenant_take_turns(conn: Conn) -> None:
    jobs = [make_job(conn, 9, published=0) for _ in range(3)]
    assert [turn(conn) for _ in range(6)] == jobs * 2


def test_a_tenant_that_comes_later_is_served_next(conn: Conn) -> None:
    first = make_job(conn, 9, published=0, tenant="first")
    assert [turn(conn), turn(conn)] == [first] * 2
    late = make_job(conn, 9, published=0, tenant="late")
    assert [turn(conn) for _ in range(4)] == [late, first, late, first]


def test_a_job_that_ended_leaves_its_tenant_no_debt(conn: Conn) -> None:
    done, other = make_job(conn, 1, published=0, tenant="a"), make_job(conn, 9, published=0, tenant="b")
    assert [turn(conn), turn(conn), turn(conn)] == [done, other, other]
    record(conn, done, {"succeeded": [0]})
    new = make_job(conn, 9, published=0, tenant="a")
    assert [turn(conn), turn(conn)] == [new, other]


def test_priority_goes_before_the_turn_of_tenants(conn: Conn) -> None:
    urgent = [make_job(conn, 9, published=0, tenant="a") for _ in range(2)]
    make_job(conn, 9, published=0, tenant="b")
    for job in urgent:
        actions.limit(conn, job, Requester("python"), {"priority": -1})
    assert [turn(conn) for _ in range(4)] == urgent * 2


def test_a_job_that_got_nothing_published_keeps_its_turn(conn: Conn) -> None:
    first, second = (make_job(conn, 9, published=0, tenant=name) for name in "ab")
    assert [turn(conn), turn(conn)] == [first, second]
    claim = publishing.claim_bulk(conn)
    assert claim is not None
    assert claim.job == first
    publishing.advance_watermark(
        conn, claim, watermark=claim.watermark, published=0, keep=False, unserved=True
    )
    assert [turn(conn), turn(conn)] == [first, second]


# A gone actor -------------------------------------------------------------------------------------------------------


def test_a_job_whose_actor_no_living_worker_has_is_passed_over_until_one_comes(conn: Conn) -> None:
    gone, other = make_job(conn, 9, actor="gone", published=0), make_job(conn, 9, actor="work", published=0)
    had = make_worker(conn, "gone", "work")
    make_worker(conn, "work")
    assert {turn(conn), turn(conn)} == {gone, other}
    workers.stop_worker(conn, had)
    assert [turn(conn) for _ in range(3)] == [other] * 3
    assert publishing.claim_bulk(conn, job=gone) is None
    make_worker(conn, "gone")
    assert gone in {turn(conn), turn(conn)}


def test_what_no_worker_ever_had_is_published_and_so_fails(conn: Conn) -> None:
    job = make_job(conn, 9, actor="misspelt", published=0)
    make_worker(conn, "work")
    assert turn(conn) == job


@pytest.mark.parametrize("end", ["died_at = now()", "stopped_at = now()", "beat_at = now() - interval '1 h'"])
def test_with_no_worker_alive_jobs_are_published_as_deep_as_a_queue_may_be(conn: Conn, end: str) -> None:
    job = make_job(conn, 9, actor="gone", published=0)
    workers.stop_worker(conn, make_worker(conn, "gone"))
    assert turn(conn) == job
    worker = make_worker(conn, "work")
    assert turn(conn) is None
    conn.execute(f"UPDATE callboard.workers SET {end} WHERE id = {worker}")
    assert turn(conn) == job
