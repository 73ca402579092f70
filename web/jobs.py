"""Endpoints that read a job, its errors, its history and its callbacks."""

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
    """Which jobs: those for which all that is given holds. The words of `q` say the same in one text.

    `name` is a part of the name, case ignored. Times are times with a zone, days, or spans before now like 24h.
    `standing`: those of plain sends; `stalled`: that do not move; `failing`: that failed, or have items that did.
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
        """The filter as queries take it. Raises Refused, which names the parameter."""
        moments: dict[str, Any] = {}
        for name in job_filter.TIMES.values():
            if text := getattr(self, name):
                try:
                    moments[name] = job_filter.parse_moment(name, text)
                except ValueError as error:
                    raise parameters.wrong(name, str(error).removeprefix(f"{name} ")) from None
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
            raise parameters.wrong("q", f"makes no sense: {error}") from None


class JobQuery(JobConditions, kw_only=True):
    """Which jobs, and which part of their list."""

    limit: Limit = parameters.LIMIT
    after: After = None


def seen(call: Call[Any, Any], wanted: JobConditions) -> job_filter.JobFilter | None:
    """The filter of the jobs that the sender may see; None where there can be none."""
    found = wanted.read()
    if call.tenant is None:
        return found
    return replace(found, tenant=call.tenant) if found.tenant in (None, call.tenant) else None


def listing(call: Call[JobQuery, NoBody]) -> Query[item_view.Page]:
    """The page of jobs that is asked for, of those that the sender may see."""
    wanted, before = seen(call, call.query), parameters.cursor(call.query.after, "jobs")
    if wanted is None:
        wanted, before = job_filter.JobFilter(tenant=call.tenant), 0  # no job has such an id
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
    """List the errors of a job in groups; first those by which most items failed."""
    found = await call.read(queries.errors(call.job))
    return await page(call, "errors", found)


async def error(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Get a group of a job's errors, with the traceback of its example."""
    group = str(call.request.path_params["error"])
    found = await call.read(queries.error(call.job, group)) if is_storable(group) else None
    if found is None:
        raise HTTPException(
            404, f"there is no group of errors {group[:40]!r} of job {call.job}: GET /jobs/{call.job}/errors lists them"
        )
    return found


async def actions(call: Call[Page, NoBody]) -> dict[str, Any]:
    """List who did what to a job, the latest first."""
    before = parameters.cursor(call.query.after, "actions")
    found, following = await call.read(queries.actions(call.job, before=before, limit=call.query.limit))
    return await page(call, "actions", found, following)


async def callbacks(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """List the callbacks of a job's ends and their deliveries, the latest end first."""
    found = await call.read(queries.callbacks(call.job))
    return await page(call, "callbacks", found)


async def page(call: Call[Any, Any], rows: str, found: list[Any], following: int | None = None) -> dict[str, Any]:
    """A page of a job's rows; where there are none, a 404 if there is no such job either."""
    if not found:
        await call.find_job(call.job)
    return {rows: found, "next": parameters.next_page(following, rows)}
