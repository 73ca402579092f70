"""Handlers that read: each parses its parameters, asks the database once or twice, and answers."""

from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from callboard.sql.reads import queries
from callboard.sql.reads.queries import Query
from callboard.sql.states import ITEM_STATES, JOB_STATES, WORKER_STATES
from callboard.web import access, parameters
from callboard.web.problems import Answer

T = TypeVar("T")


async def jobs(request: Request) -> Answer:
    """GET /api/jobs: newest first; `state`, `tenant`, `actor`, `name` (a part of it), `standing`, `after`, `limit`."""
    wanted, only = parameters.text(request, "tenant"), access.tenant(request)
    if only is not None and wanted not in (None, only):
        return Answer({"jobs": [], "next": None})
    query = queries.jobs(
        before=parameters.cursor(request, parameters.IDS),
        limit=parameters.limit(request),
        state=parameters.choice(request, "state", JOB_STATES),
        tenant=wanted if only is None else only,
        actor=parameters.text(request, "actor"),
        name=parameters.text(request, "name"),
        standing=parameters.flag(request, "standing"),
    )
    found, following = await read(request, query)
    return Answer({"jobs": found, "next": following})


async def job(request: Request) -> Answer:
    """GET /api/jobs/{job}."""
    return Answer(await find_job(request, await access.job(request)))


async def items(request: Request) -> Answer:
    """GET /api/jobs/{job}/items: in order; `state`, `after`, `limit`; `stage`, for a job that has stages."""
    number, stage = await access.job(request), parameters.stage(request)
    if stage is not None:
        number = _job_of_stage(await find_job(request, number), stage)
    after = parameters.cursor(request, parameters.ITEMS)
    query = queries.items(
        number,
        state=parameters.choice(request, "state", ITEM_STATES),
        after=-1 if after is None else after,
        limit=parameters.limit(request),
    )
    found, following = await read(request, query)
    if not found and (stages := (await find_job(request, number))["stages"]):
        there = ", ".join(f"stage={one['stage']} ({one['name']})" for one in stages)
        raise HTTPException(400, f"job {number} has stages, and each has its own items: ask with {there}")
    return Answer({"items": found, "next": following})


def _job_of_stage(job: dict[str, Any], stage: int) -> int:
    for one in job["stages"]:
        if one["stage"] == stage:
            return int(one["job"])
    raise HTTPException(400, f"job {job['id']} has no stage {stage}")


async def item(request: Request) -> Answer:
    """GET /api/jobs/{job}/items/{item}: whole, with its attempts except a simple success."""
    number, position = await access.job(request), parameters.item(request)
    found = await read(request, queries.item(number, position))
    if found is None:
        raise HTTPException(404, f"there is no item {position} of job {number}")
    return Answer({**found, "attempts": await read(request, queries.attempts(number, position))})


async def errors(request: Request) -> Answer:
    """GET /api/jobs/{job}/errors: in groups; first those by which most items failed."""
    number = await access.job(request)
    return await _list(request, "errors", number, await read(request, queries.errors(number)))


async def actions(request: Request) -> Answer:
    """GET /api/jobs/{job}/actions: who did what to it, the latest first; `after`, `limit`."""
    number, before = await access.job(request), parameters.cursor(request, parameters.IDS)
    query = queries.actions(number, before=before, limit=parameters.limit(request))
    return await _list(request, "actions", number, *await read(request, query))


async def callbacks(request: Request) -> Answer:
    """GET /api/jobs/{job}/callbacks: the callbacks of its ends and their deliveries, the latest end first."""
    number = await access.job(request)
    return await _list(request, "callbacks", number, await read(request, queries.callbacks(number)))


async def workers(request: Request) -> Answer:
    """GET /api/workers: the latest first; `state`, `after`, `limit`."""
    access.no_tenant(request)
    query = queries.workers(
        before=parameters.cursor(request, parameters.ITEMS),
        limit=parameters.limit(request),
        state=parameters.choice(request, "state", WORKER_STATES),
    )
    found, following = await read(request, query)
    return Answer({"workers": found, "next": following})


async def find_job(request: Request, number: int) -> dict[str, Any]:
    """The job as the API describes it. Raises HTTPException 404 when there is none with this id."""
    found = await read(request, queries.job(number))
    if found is None:
        raise HTTPException(404, f"there is no job {number}")
    return found


async def read(request: Request, query: Query[T]) -> T:
    """Run a query on the app's database."""
    answer: T = await request.app.state.database.read(query)
    return answer


async def _list(
    request: Request, name: str, job: int, rows: list[Any], following: int | None = None
) -> Answer:
    """A page of a job's rows; where there are none, a 404 if there is no such job either."""
    if not rows:
        await find_job(request, job)
    return Answer({name: rows, "next": following})
