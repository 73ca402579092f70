"""Endpoints of a job's items."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
from starlette.exceptions import HTTPException

from callboard.middleware.submission.item_encoding import key_texts
from callboard.sql.reads import item_view, queries
from callboard.sql.reads.item_view import Page
from callboard.sql.states import ItemState
from callboard.web import parameters
from callboard.web.answers import Count
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import ITEMS, After, Limit, NoQuery

#: A group of errors.
Error: TypeAlias = Annotated[
    str | None, msgspec.Meta(description="items that failed by it: the `id` of a group of errors, or a type")
]


class ItemFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Which items: those for which all that is given holds; `stage`: those of one of the stages."""

    state: list[ItemState] | None = None
    error: Error = None
    key: Annotated[str | None, msgspec.Meta(description="the item's key")] = None
    stage: Count | None = None
    limit: Limit = parameters.LIMIT
    after: After = None


async def items(call: Call[ItemFilter, NoBody]) -> dict[str, Any]:
    """List a job's items in order."""
    number, wanted = call.job, call.query
    if wanted.stage is not None:
        number = job_of_stage(await call.find_job(number), wanted.stage)
    after = parameters.cursor(wanted.after, "items", ITEMS)
    found, following = await read_page(
        call,
        number,
        wanted.state,
        error=wanted.error,
        keys=() if wanted.key is None else key_texts(wanted.key),
        after=-1 if after is None else after,
        limit=wanted.limit,
    )
    if not found and (stages := (await call.find_job(number))["stages"]):
        there = ", ".join(f"stage={one['stage']} ({one['name']})" for one in stages)
        raise HTTPException(400, f"job {number} has stages, and each has its own items: ask with {there}")
    return {"items": found, "next": parameters.next_page(following, "items")}


async def read_page(
    call: Call[Any, Any], number: int, states: Sequence[str] | None, *, limit: int, **rest: Any
) -> Page:
    """A page of items in one of these states; None: any."""
    each: Sequence[str | None] = states or [None]
    pages = [await call.read(queries.items(number, state=state, limit=limit, **rest)) for state in each]
    return item_view.of_states(pages, limit)


def job_of_stage(job: dict[str, Any], stage: int) -> int:
    """The id of a stage of the job. Raises HTTPException 400 where there is none with this number."""
    for one in job["stages"]:
        if one["stage"] == stage:
            return int(one["job"])
    raise HTTPException(
        400, f"job {job['id']} has no stage {stage}: it has {len(job['stages'])} stages, numbered from 0"
    )


async def item(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Get an item whole, with its attempts except a simple success."""
    position = parameters.path_number(call.request, "item", ITEMS, f"item of job {call.job}")
    found = await call.read(queries.item(call.job, position))
    if found is None:
        raise HTTPException(404, f"there is no item {position} of job {call.job}")
    return {**found, "attempts": await call.read(queries.attempts(call.job, position))}
