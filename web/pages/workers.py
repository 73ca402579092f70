"""The page of the worker processes."""

from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import Response

from callboard.web import workers as endpoints
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import render, wanted_parts
from callboard.web.parameters import After
from callboard.web.workers import WorkerFilter


class WorkersQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Where the list of workers that ended goes on, and which parts of the page."""

    after: After = None
    part: list[str] = []


async def workers(call: Call[WorkersQuery, NoBody]) -> Response:
    """Show the workers that are alive, and those that ended lately."""
    wanted_parts(call.query.part, ("workers",))
    asked: Call[Any, NoBody] = call
    found = await endpoints.workers(replace(asked, query=WorkerFilter(after=call.query.after)))
    alive = await endpoints.workers(replace(asked, query=WorkerFilter(state="alive", limit=500)))
    return render(
        call.request,
        "workers.html",
        call.query.part,
        {
            "alive": alive["workers"],
            "ended": [one for one in found["workers"] if one["state"] != "alive"],
            "next": found["next"],
            "threads": sum(one["threads"] for one in alive["workers"]),
            "releases": sorted({one["release"] or "unnamed" for one in alive["workers"]}),
        },
    )
