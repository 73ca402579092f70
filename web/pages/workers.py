"""The page of worker processes."""

from dataclasses import replace
from typing import Any

from starlette.responses import Response

from callboard.web import workers as endpoints
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import Parts, render
from callboard.web.parameters import After
from callboard.web.workers import WorkerFilter


class WorkersQuery(Parts):
    """The cursor of the list of ended workers, and which parts of the page to render."""

    after: After = None


async def workers(call: Call[WorkersQuery, NoBody]) -> Response:
    """Show the living workers, and those that ended recently."""
    asked: Call[Any, NoBody] = call
    found = await endpoints.workers(replace(asked, query=WorkerFilter(after=call.query.after)))
    alive = await endpoints.workers(replace(asked, query=WorkerFilter(state="alive", limit=500)))
    return render(
        call.request,
        "workers.html",
        {
            "alive": alive["workers"],
            "ended": [one for one in found["workers"] if one["state"] != "alive"],
            "next": found["next"],
            "threads": sum(one["threads"] for one in alive["workers"]),
            "releases": sorted({one["release"] or "unnamed" for one in alive["workers"]}),
        },
        parts=call.query.part,
    )
