"""Endpoints with the data of a job's page: samples over time, lanes, and a recount."""

from typing import Any

import psycopg
from starlette.exceptions import HTTPException

from callboard.sql.reads import queries
from callboard.web.endpoint import Call, NoBody
from callboard.web.jobs import page
from callboard.web.parameters import NoQuery

LONG = "a recount of a job with so many items takes longer than 5 s"
#: Maximum number of marks in a chart: the latest ones.
MARKS = 100


async def samples(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Get the progress of a job over time: at most 202 points, and its actions as marks.

    `rate` is in items per second since the previous point. A period without progress has no points.
    """
    points = await call.read(queries.samples(call.job))
    marks, _ = await call.read(queries.actions(call.job, limit=MARKS))
    if not points and not marks:
        await call.find_job(call.job)
    return {"points": points, "marks": marks[::-1]}


async def lanes(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """List at most 50 lanes of a job, those with the most items in flight first."""
    return await page(call, "lanes", await call.read(queries.lanes(call.job)))


async def verify(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Recount a job from its items and compare the counts; every `drift` is a bug."""
    await call.find_job(call.job)
    try:
        return await call.read(queries.verify(call.job))
    except psycopg.errors.QueryCanceled:
        raise HTTPException(503, f"{LONG}: `callboard verify {call.job}` takes as long as it needs") from None
