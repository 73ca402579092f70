"""Endpoints of the worker processes."""

from typing import Any

import msgspec

from callboard.sql.reads import queries
from callboard.sql.states import WorkerState
from callboard.web import parameters
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import ITEMS, After, Limit


class WorkerFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Which workers."""

    state: WorkerState | None = None
    limit: Limit = parameters.LIMIT
    after: After = None


async def workers(call: Call[WorkerFilter, NoBody]) -> dict[str, Any]:
    """List worker processes, the latest first."""
    query = queries.workers(
        before=parameters.cursor(call.query.after, "workers", ITEMS), limit=call.query.limit, state=call.query.state
    )
    found, following = await call.read(query)
    return {"workers": found, "next": parameters.next_page(following, "workers")}
