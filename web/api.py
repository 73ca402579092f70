"""The JSON API: each handler parses, reads once or twice, and answers."""

from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from callboard.sql.reads import queries
from callboard.sql.reads.queries import Query
from callboard.sql.states import ITEM_STATES, JOB_STATES, WORKER_STATES
from callboard.web import parameters
from callboard.web.problems import Answer

T = TypeVar("T")


async def jobs(request: Request) -> Answer:
    """GET /api/jobs: newest first; `state`, `tenant`, `actor`, `name` (a part of it), `after`, `limit`."""
    query = queries.jobs(
        before=parameters.cursor(request, parameters.IDS),
        limit=parameters.limit(request),
        state=parameters.choice(request, "state", JOB_STATES),
        tenant=parameters.text(request, "tenant"),
        actor=parameters.text(request, "actor"),
        name=parameters.text(request, "name"),
    )
    found, following = await read(request, query)
    return Answer({"jobs": found, "next": following})


async def job(request: Request) -> Answer:
    """GET /api/jobs/{job}."""
    return Answer(await known(request, parameters.job(request)))


async def items(request: Request) -> Answer:
    """GET /api/jobs/{job}/items: in order; `state`, `after`, `limit`; of a job of stages those of a `stage`."""
    number = parameters.job(request)
    stage = parameters.stage(request)
    if stage is not None:
        number = _of_stage(await known(request, number), stage)
    after = parameters.cursor(request, parameters.ITEMS)
    query = queries.items(
        number,
        state=parameters.choice(request, "state", ITEM_STATES),
        after=-1 if after is None else after,
        limit=parameters.limit(request),
    )
    found, following = await read(request, query)
    if not found and (stages := (await known(request, number))["stages"]):
        there = ", ".join(f"stage={one['stage']} ({one['name']})" for one in stages)
        raise HTTPException(400, f"job {number} has stages, and each has its own items: ask with {there}")
    return Answer({"items": found, "next": following})


def _of_stage(job: dict[str, Any], stage: int) -> int:
    found = next((one for one in job["stages"] if one["stage"] == stage), None)
    if found is None:
        raise HTTPException(400, f"job {job['id']} has no stage {stage}")
    return int(found["job"])


async def item(request: Request) -> Answer:
    """GET /api/jobs/{job}/items/{item}: whole, with its attempts that did not simply succeed."""
    number, position = parameters.job(request), parameters.item(request)
    found = await read(request, queries.item(number, position))
    if found is None:
        raise HTTPException(404, f"there is no item {position} of job {number}")
    return Answer({**found, "attempts": await read(request, queries.attempts(number, position))})


async def errors(request: Request) -> Answer:
    """GET /api/jobs/{job}/errors: one a kind, type and place, those that cost most items first."""
    number = parameters.job(request)
    found = await read(request, queries.errors(number))
    if not found:
        await known(request, number)
    return Answer({"errors": found, "next": None})


async def actions(request: Request) -> Answer:
    """GET /api/jobs/{job}/actions: who did what to it, the latest first; `after`, `limit`."""
    number = parameters.job(request)
    before = parameters.cursor(request, parameters.IDS)
    found, following = await read(
        request, queries.actions(number, before=before, limit=parameters.limit(request))
    )
    if not found:
        await known(request, number)
    return Answer({"actions": found, "next": following})


async def callbacks(request: Request) -> Answer:
    """GET /api/jobs/{job}/callbacks: whom its ends called, the latest end first, and how that went."""
    number = parameters.job(request)
    found = await read(request, queries.callbacks(number))
    if not found:
        await known(request, number)
    return Answer({"callbacks": found, "next": None})


async def workers(request: Request) -> Answer:
    """GET /api/workers: the latest first; `state`, `after`, `limit`."""
    query = queries.workers(
        before=parameters.cursor(request, parameters.ITEMS),
        limit=parameters.limit(request),
        state=parameters.choice(request, "state", WORKER_STATES),
    )
    found, following = await read(request, query)
    return Answer({"workers": found, "next": following})


async def known(request: Request, number: int) -> dict[str, Any]:
    """The job, or a 404."""
    found = await read(request, queries.job(number))
    if found is None:
        raise HTTPException(404, f"there is no job {number}")
    return found


async def read(request: Request, query: Query[T]) -> T:
    """Ask the app's database."""
    answer: T = await request.app.state.database.read(query)
    return answer
