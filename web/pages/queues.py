"""The page of the queues, and the page of a queue's dead letters."""

from typing import Any

from starlette.responses import RedirectResponse, Response

from callboard.web import queues as endpoints
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import render


async def queues(call: Call[Any, NoBody]) -> Response:
    """Show the queues of all known actors."""
    return render(call.request, "queues.html", await endpoints.queues(call), parts=call.query.part)


async def dead_letters(call: Call[Any, NoBody]) -> Response:
    """Show the dead letters of a queue."""
    found = await endpoints.dead_letters(call)
    shown = {"queue": call.request.path_params["queue"], "letters": found["dead_letters"]}
    return render(call.request, "dead_letters.html", shown, parts=call.query.part)


async def put_back(call: Call[Any, Any]) -> Response:
    """Move dead letters back to their queue."""
    await endpoints.put_back(call)
    return RedirectResponse("dead-letters", 303)
