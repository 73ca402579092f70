"""Endpoints that read a job, its errors, its history and its callbacks."""

import re
from dataclasses import replace
from typing import Any

import msgspec
from starlette.exceptions import HTTPException

from callboard.sql.json_values import is_storable
from callboard.sql.reads import item_view, job_filter, queries
from callboard.sql.reads.queries import Query
from callboard.sql.states import JobState
from callboard.web import parameters
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import After, Limit, NoQuery, Page


class JobConditions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which jobs: those that match all given conditions. `q` has the same conditions as one text of search words.

    `name` is a part of the name, case ignored. Times are times with a time zone, days, or time spans before now like
    24h. `standing`: jobs of plain sends; `stalled`: jobs that do not move; `failing`: jobs that failed or have failed
    items.
    """

    q: str | None = None
    state: list[JobState] | None = None
    actor: str | None = None
    tenant: str | None = None
    key: str | None = None
    name: str | None = None
    metadata: dict[str, str] | None = None
    created_after: str | None = None
    created_before: str | None = None
    ended_after: str | None = None
    standing: bool | None = None
    stalled: bool | None = None
    failing: bool | None = None

    def read(self) -> job_filter.JobFilter:
        """Return the filter for the queries. Raises Refused, which names the wrong parameter."""
        moments: dict[str, Any] = {}
        for name in job_filter.TIMES.values():
            if text := getattr(self, name):
                try:
                    moments[name] = job_filter.parse_moment(name, text)
                except ValueError as error:
                    raise parameters.wrong(name, str(error).removeprefix(f"{name} ") + _advice(text)) from None
        try:
            given = job_filter.JobFilter(
                states=frozenset(self.state) if self.state else None,
                names=(self.name,) if self.name else (),
                metadata=self.metadata or {},
                **{one: getattr(self, one) for one in (*job_filter.TEXTS, *job_filter.FLAGS)},
                **moments,
            )
        except ValueError as error:
            raise parameters.Refused(400, str(error), code="parameter") from None
        try:
            return given.also(job_filter.parse_search(self.q or ""))
        except ValueError as error:
            raise parameters.wrong("q", f"is invalid: {error}{_advice(self.q or '')}") from None


def _advice(text: str) -> str:
    """Return what to do if the + of a time zone in a URL was read as a blank; else ''."""
    return "; a + in a URL is written %2B" if re.search(r"\dT[\d:.]+ \d\d", text) else ""


class JobQuery(JobConditions, kw_only=True):
    """Which jobs, and which page of their list."""

    limit: Limit = parameters.LIMIT
    after: After = None


def seen(call: Call[Any, Any], wanted: JobConditions) -> job_filter.JobFilter | None:
    """Return the filter restricted to the jobs that the sender may see; None if no job can match."""
    found = wanted.read()
    if call.tenant is None:
        return found
    return replace(found, tenant=call.tenant) if found.tenant in (None, call.tenant) else None


def listing(call: Call[JobQuery, NoBody]) -> Query[item_view.Page]:
    """Return the query for the requested page of the jobs that the sender may see."""
    wanted, before = seen(call, call.query), parameters.cursor(call.query.after, "jobs")
    if wanted is None:
        wanted, before = job_filter.JobFilter(tenant=call.tenant), 0  # no job has an id below 0
    return queries.jobs(wanted, before=before, limit=call.query.limit)


async def jobs(call: Call[JobQuery, NoBody]) -> dict[str, Any]:
    """List jobs, the newest first."""
    found, following = await call.read(listing(call))
    return {"jobs": found, "next": parameters.next_page(following, "jobs")}


async def counts(call: Call[NoQuery, NoBody]) -> dict[str, int]:
    """Count the jobs of each view: open, stalled, failed today, ended, all."""
    found = await call.read(queries.job_counts(call.tenant))
    return {**found, "all": found["open"] + found["ended"]}


async def job(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Get a job."""
    return await call.find_job(call.job)


async def errors(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """List the error groups of a job, those with the most failed items first."""
    found = await call.read(queries.errors(call.job))
    return await page(call, "errors", found)


async def error(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Get an error group of a job, with the traceback of its example."""
    group = str(call.request.path_params["error"])
    found = await call.read(queries.error(call.job, group)) if is_storable(group) else None
    if found is None:
        raise HTTPException(
            404, f"job {call.job} has no error group {group[:40]!r}: GET /jobs/{call.job}/errors lists its groups"
        )
    return found


async def actions(call: Call[Page, NoBody]) -> dict[str, Any]:
    """List the actions on a job and who did them, the latest first."""
    before = parameters.cursor(call.query.after, "actions")
    found, following = await call.read(queries.actions(call.job, before=before, limit=call.query.limit))
    return await page(call, "actions", found, following)


async def callbacks(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """List the callbacks of a job and their deliveries, those of its latest end first."""
    found = await call.read(queries.callbacks(call.job))
    return await page(call, "callbacks", found)


async def page(call: Call[Any, Any], rows: str, found: list[Any], following: int | None = None) -> dict[str, Any]:
    """Return a page of a job's rows. If it has none, check that the job exists: raises HTTPException 404."""
    if not found:
        await call.find_job(call.job)
    return {rows: found, "next": parameters.next_page(following, rows)}
