"""How a job went over time, its lanes, and its recount over HTTP, on a real database."""

import asyncio
from datetime import datetime
from typing import Any

import httpx
import pytest

from callboard.sql import pool
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.writes import actions
from callboard.sql.writes.requests import Requester
from callboard.web import create_app
from tests.support.jobs import make_job, make_mixed_job, make_staged, record, send

ANNA = Requester("python", "anna")


def read(url: str, path: str, method: str = "GET", status: int = 200) -> Any:
    """What the API answers."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(url=url, open_to_everyone=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://test/api/v1") as client:
            return await client.request(method, path)

    answer = asyncio.run(ask())
    assert answer.status_code == status, answer.text
    return answer.json()


def points(conn: Conn, job: int) -> list[tuple[int, int, int, float]]:
    """When each point is, in seconds before the last, and what it says."""
    found = queries.run(conn, queries.samples(job))
    times = [datetime.fromisoformat(one["at"]) for one in found]
    assert times == sorted(set(times))
    return [
        (round((time - times[-1]).total_seconds()), one["ended"], one["failed"], round(one["rate"], 2))
        for time, one in zip(times, found, strict=True)
    ]


def sampled(conn: Conn, job: int, *samples: tuple[float, int, int]) -> None:
    """Samples of so many seconds ago: how many items had ended, and failed."""
    for ago, final, failed in samples:
        conn.execute(
            "INSERT INTO callboard.samples (job_id, taken_at, final, failed)"
            " VALUES (%s, now() - make_interval(secs => %s), %s, %s)",
            (job, ago, final, failed),
        )


def started(conn: Conn, job: int, ago: float, *, ended: float | None = None) -> None:
    """Let a job have started so many seconds ago."""
    conn.execute(
        "UPDATE callboard.jobs SET started_at = now() - make_interval(secs => %(ago)s),"
        " finished_at = coalesce(now() - make_interval(secs => %(ended)s::float8), finished_at) WHERE id = %(job)s",
        {"ago": ago, "ended": ended, "job": job},
    )


def test_a_chart_begins_at_the_start_and_ends_now(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 100)
    assert queries.run(conn, queries.samples(job)) == []
    record(conn, job, {"succeeded": range(50), "failed": range(50, 60)})
    with conn.transaction():  # at one time
        started(conn, job, 100)
        sampled(conn, job, (80, 10, 0), (60, 30, 5), (20, 50, 10))
        assert points(conn, job) == [
            (-100, 0, 0, 0), (-80, 10, 0, 0.5), (-60, 30, 5, 1), (-20, 50, 10, 0.5), (0, 60, 10, 0.5),
        ]  # fmt: skip
    actions.pause(conn, job, ANNA)
    actions.resume(conn, job, ANNA)
    answer = read(database_url, f"/jobs/{job}/samples")
    assert [mark["action"] for mark in answer["marks"]] == ["pause", "resume"]
    assert [point["ended"] for point in answer["points"]] == [0, 10, 30, 50, 60]


def test_a_chart_ends_with_its_job_and_has_no_rate_below_0_after_a_retry(conn: Conn) -> None:
    job = make_job(conn, 10)
    record(conn, job, {"failed": range(10)})
    with conn.transaction():  # at one time
        started(conn, job, 360, ended=60)
        sampled(conn, job, (260, 9, 9), (160, 2, 2), (50, 10, 10))
    assert points(conn, job) == [(-300, 0, 0, 0), (-200, 9, 9, 0.09), (-100, 2, 2, 0), (0, 10, 10, 0.08)]


def test_a_chart_of_stages_is_of_all_together(conn: Conn) -> None:
    parent, (first, second) = make_staged(conn)
    started(conn, first, 100, ended=50)
    started(conn, second, 40)
    started(conn, parent, 100)
    sampled(conn, first, (80, 4, 1))
    sampled(conn, second, (20, 0, 0))
    found = [(ended, failed) for _, ended, failed, _ in points(conn, parent)]
    assert found == [(0, 0), (4, 1), (10, 2), (11, 2)]


def test_a_long_chart_has_few_points(conn: Conn) -> None:
    job = make_job(conn, 1)
    record(conn, job, {"retrying": [0]})
    started(conn, job, 10_000)
    sampled(conn, job, *((n, 0, 0) for n in range(4, 8_000, 4)))
    assert 150 < len(queries.run(conn, queries.samples(job))) <= queries.SAMPLES + 2


def test_lanes_tell_what_is_in_flight_and_what_waits(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 0, sealed=False)
    assert queries.run(conn, queries.lanes(job)) == []
    actions.limit(conn, job, ANNA, {"concurrency_by": "customer=2"})
    for item in range(12):
        send(conn, job, item)
    conn.execute("UPDATE callboard.outbox SET lane = (item %% 3)::text WHERE job_id = %s", (job,))
    conn.execute(
        "INSERT INTO callboard.lanes (job_id, item, lane)"
        " SELECT %s, n, lane FROM unnest('{1,2,3,4}'::int[], '{1,2,3,1}'::text[]) AS l (n, lane)",
        (job,),
    )
    assert [tuple(lane.values()) for lane in read(database_url, f"/jobs/{job}/lanes")["lanes"]] == [
        ("1", 2, 2, 4), ("2", 1, 2, 4), ("3", 1, 2, 0), ("0", 0, 2, 4),
    ]  # fmt: skip
    conn.execute("UPDATE callboard.outbox SET lane = item::text WHERE job_id = %s", (job,))
    assert len(queries.run(conn, queries.lanes(job))) == 12


def test_a_recount_says_what_it_compared_and_what_differs(conn: Conn, database_url: str) -> None:
    job, other = make_mixed_job(conn), make_job(conn, 1)
    conn.execute("UPDATE callboard.jobs SET crashes = 7 WHERE id = %s", (other,))
    answer = read(database_url, f"/jobs/{job}/verify", "POST")
    assert (answer["jobs"], len(answer["checks"]), answer["drift"]) == (1, 16, [])
    drifted = read(database_url, f"/jobs/{other}/verify", "POST")["drift"]
    assert drifted == [{"job": other, "name": "a job", "check": "crashes", "stored": 7, "counted": 0}]
    conn.execute("UPDATE callboard.jobs SET crashes = 0 WHERE id = %s", (other,))


def test_a_recount_that_takes_too_long_is_a_503_that_says_what_takes_as_long_as_it_needs(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(conn, 1)
    monkeypatch.setattr(pool, "_BEGIN_READ", pool._BEGIN_READ.replace("5s", "2s"))  # the job is found in it
    with conn.transaction():
        conn.execute("LOCK TABLE callboard.items")
        problem = read(database_url, f"/jobs/{job}/verify", "POST", status=503)
    assert f"`callboard verify {job}` takes as long as it needs" in problem["detail"]
