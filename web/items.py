"""Endpoints of a job's items."""

from typing import Annotated, Any, TypeAlias

import msgspec
from starlette.exceptions import HTTPException

from callboard.middleware.submission.item_encoding import key_texts
from callboard.sql.reads import queries
from callboard.sql.states import ItemState
from callboard.web import parameters
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import ITEMS, After, Limit, NoQuery

#: An error group or type.
Error: TypeAlias = Annotated[
    str | None, msgspec.Meta(description="items that failed with it: the `id` of an error group, or a type")
]


class ItemFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Which items: those that match all given conditions."""

    state: ItemState | None = None
    error: Error = None
    key: Annotated[str | None, msgspec.Meta(description="the item's key")] = None
    limit: Limit = parameters.LIMIT
    after: After = None


async def items(call: Call[ItemFilter, NoBody]) -> dict[str, Any]:
    """List a job's items in order."""
    wanted, after = call.query, parameters.cursor(call.query.after, "items", ITEMS)
    query = queries.items(
        call.job, state=wanted.state, error=wanted.error, keys=key_texts(wanted.key), after=after, limit=wanted.limit
    )
    found, following = await call.read(query)
    if not found and (stages := (await call.find_job(call.job))["stages"]):
        there = ", ".join(f"{one['job']} ({one['name']})" for one in stages)
        raise HTTPException(400, f"job {call.job} has stages with their own items: ask for those of job {there}")
    return {"items": found, "next": parameters.next_page(following, "items")}


async def item(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Get an item with all fields, and its attempts, except a plain success."""
    position = parameters.path_number(call.request, "item", ITEMS, f"item of job {call.job}")
    found = await call.read(queries.item(call.job, position))
    if found is None:
        raise HTTPException(404, f"there is no item {position} of job {call.job}")
    return {**found, "attempts": await call.read(queries.attempts(call.job, position))}
