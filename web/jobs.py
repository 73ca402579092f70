"""Endpoints that read a job, its errors, its history and its callbacks."""

from typing import Any

import msgspec

from callboard.sql.reads import queries
from callboard.web import parameters
from callboard.web.answers import JobState
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import After, Limit, NoQuery, Page


class JobFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Which jobs: `name` is a part of the name, case ignored; `standing`: those of plain sends, or the others."""

    state: JobState | None = None
    tenant: str | None = None
    actor: str | None = None
    name: str | None = None
    standing: bool | None = None
    limit: Limit = parameters.LIMIT
    after: After = None


async def jobs(call: Call[JobFilter, NoBody]) -> dict[str, Any]:
    """List jobs, the newest first."""
    wanted = call.query
    if call.tenant is not None and wanted.tenant not in (None, call.tenant):
        return {"jobs": [], "next": None}
    query = queries.jobs(
        before=parameters.cursor(wanted.after, "jobs"),
        limit=wanted.limit,
        state=wanted.state,
        tenant=wanted.tenant if call.tenant is None else call.tenant,
        actor=wanted.actor,
        name=wanted.name,
        standing=wanted.standing,
    )
    found, following = await call.read(query)
    return {"jobs": found, "next": parameters.next_page(following, "jobs")}


async def job(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Get a job."""
    return await call.find_job(call.job)


async def errors(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """List the errors of a job in groups; first those by which most items failed."""
    found = await call.read(queries.errors(call.job))
    return await page(call, "errors", found)


async def actions(call: Call[Page, NoBody]) -> dict[str, Any]:
    """List who did what to a job, the latest first."""
    before = parameters.cursor(call.query.after, "actions")
    found, following = await call.read(queries.actions(call.job, before=before, limit=call.query.limit))
    return await page(call, "actions", found, following)


async def callbacks(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """List the callbacks of a job's ends and their deliveries, the latest end first."""
    found = await call.read(queries.callbacks(call.job))
    return await page(call, "callbacks", found)


async def page(
    call: Call[Any, Any], rows: str, found: list[Any], following: int | None = None
) -> dict[str, Any]:
    """A page of a job's rows; where there are none, a 404 if there is no such job either."""
    if not found:
        await call.find_job(call.job)
    return {rows: found, "next": parameters.next_page(following, rows)}
