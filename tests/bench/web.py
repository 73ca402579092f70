"""What reading over HTTP costs: beside a bare route with the same query, and beside an almost empty database."""

import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.web.database import Database
from tests.bench.rig import Rig
from tests.support.jobs import make_job, make_mixed_job
from tests.support.webapp import open_app, served

#: Requests of one measurement.
REQUESTS = 300
JOBS, ITEMS = 10_000, 1_000_000

#: Jobs that are over, each with its counts and no rows of items: the lists read jobs only.
MANY_JOBS = """
INSERT INTO callboard.jobs (name, actor, queue, sealed, state, total, published, bulk_end, watermark, succeeded,
                            started_at, finished_at, created_at)
SELECT 'job ' || n, 'work', 'default', true, 'completed', 100, 100, 100, 100, 100, now(), now(), now()
FROM generate_series(1, %s) AS n
"""
MANY_ITEMS = """
WITH added AS (
    INSERT INTO callboard.items (job_id, item, args)
    SELECT %(job)s, n, '{"args":[1],"kwargs":{}}' FROM generate_series(10, %(items)s - 1) AS n RETURNING item
)
UPDATE callboard.jobs SET total = %(items)s, bulk_end = %(items)s WHERE id = %(job)s
"""


def table(rig: Rig, pairs: int) -> Iterator[str]:
    """Rows of Markdown tables, each as it is measured."""
    with connect(rig.database_url) as conn:
        job = make_mixed_job(conn)
        yield "| GET /api/v1/jobs/{id}, requests a second | Callboard | bare route | ratio |"
        yield "|---|---|---|---|"
        yield _against_bare(rig, job, pairs)
        yield "| p95 | almost empty | with more | ratio |"
        yield "|---|---|---|---|"
        yield from _with_more(rig, conn, job)


def _against_bare(rig: Rig, job: int, pairs: int) -> str:
    database = Database(rig.database_url)

    async def bare(_request: Request) -> Response:
        found = await database.read(queries.job(job))
        return Response(msgspec.json.encode(found), media_type="application/json")

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await database.close()

    app = Starlette(routes=[Route("/", bare)], lifespan=lifespan)
    with served(open_app(rig.database_url)) as ours, served(app) as other:
        measured = [(_rate(f"{ours}/api/v1/jobs/{job}"), _rate(f"{other}/")) for _ in range(pairs)]
    ratios = [a / b for a, b in measured]
    raw = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    ours_rate, bare_rate = (statistics.median(one) for one in zip(*measured, strict=True))
    return f"| {pairs} pairs: {raw} | {ours_rate:.0f} | {bare_rate:.0f} | {statistics.median(ratios):.2f} |"


def _with_more(rig: Rig, conn: Conn, job: int) -> Iterator[str]:
    paths = {
        "the page /": "/", "GET /api/v1/jobs": "/api/v1/jobs", "the page of a job": f"/jobs/{job}",
        "GET its items": f"/api/v1/jobs/{job}/items",
    }  # fmt: skip
    with served(open_app(rig.database_url)) as address:
        before = {what: _p95(address + path) for what, path in paths.items()}
        conn.execute(MANY_JOBS, (JOBS,))
        big = make_job(conn, 10, published=0)
        conn.execute(MANY_ITEMS, {"job": big, "items": ITEMS})
        conn.execute("ANALYZE")
        large = {what: path.replace(str(job), str(big)) for what, path in paths.items()}
        for what, path in large.items():
            after = _p95(address + path)
            yield f"| {what} | {before[what]:.1f} ms | {after:.1f} ms | {after / before[what]:.2f} |"


def _times(url: str) -> list[float]:
    with httpx.Client(timeout=30) as client:
        times: list[float] = []
        for _ in range(REQUESTS):
            began = time.perf_counter()
            assert client.get(url).status_code == httpx.codes.OK
            times.append(time.perf_counter() - began)
    return times


def _rate(url: str) -> float:
    return REQUESTS / sum(_times(url))


def _p95(url: str) -> float:
    return 1000 * statistics.quantiles(_times(url), n=20)[-1]
