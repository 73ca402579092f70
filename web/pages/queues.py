"""The page of the queues, and of the dead letters of one."""

from typing import Any

import msgspec
from starlette.responses import RedirectResponse, Response

from callboard.web import queues as endpoints
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import render, wanted_parts


class QueuesQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Which parts of the page."""

    part: list[str] = []


async def queues(call: Call[Any, NoBody]) -> Response:
    """Show the queues of all known actors."""
    wanted_parts(call.query.part, ("queues",))
    return render(call.request, "queues.html", call.query.part, await endpoints.queues(call))


async def dead_letters(call: Call[Any, NoBody]) -> Response:
    """Show the dead letters of a queue."""
    wanted_parts(call.query.part, ("letters",))
    found = await endpoints.dead_letters(call)
    return render(
        call.request,
        "dead_letters.html",
        call.query.part,
        {"queue": call.request.path_params["queue"], "letters": found["dead_letters"]},
    )


async def put_back(call: Call[Any, Any]) -> Response:
    """Put dead letters back."""
    await endpoints.put_back(call)
    return RedirectResponse("dead-letters", 303)
