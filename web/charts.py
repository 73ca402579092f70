"""Endpoints that a job's page draws from: samples over time, lanes, and a recount."""

from typing import Any

import psycopg
from starlette.exceptions import HTTPException

from callboard.sql.reads import queries
from callboard.web.endpoint import Call, NoBody
from callboard.web.jobs import page
from callboard.web.parameters import NoQuery

LONG = "a recount of a job of so many items takes longer than 5 s"
#: Marks of a chart at most, the latest.
MARKS = 100


async def samples(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Get how a job went: at most 202 points over its run, and what was done to it as marks.

    `rate` is in items per second since the point before. While nothing moved there is no point.
    """
    points = await call.read(queries.samples(call.job))
    marks, _ = await call.read(queries.actions(call.job, limit=MARKS))
    if not points and not marks:
        await call.find_job(call.job)
    return {"points": points, "marks": marks[::-1]}


async def lanes(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """List lanes of a job, fifty at most: those with most items in flight first."""
    return await page(call, "lanes", await call.read(queries.lanes(call.job)))


async def verify(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Recount a job from its items and compare; every `drift` is a bug."""
    await call.find_job(call.job)
    try:
        return await call.read(queries.verify(call.job))
    except psycopg.errors.QueryCanceled:
        raise HTTPException(503, f"{LONG}: `callboard verify {call.job}` takes as long as it needs") from None
