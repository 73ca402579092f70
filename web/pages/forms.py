"""The forms of the pages: each does the same as an endpoint of the API, and then redirects to a page."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import RedirectResponse, Response

from callboard.web import actions, charts, submissions
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages import words
from callboard.web.pages.page import Parts, render
from callboard.web.parameters import DryRun, Refused

#: To delete a job with more items, its name must be typed.
DELETED_WITHOUT_NAME = 10_000


class Delete(msgspec.Struct, forbid_unknown_fields=True):
    """The typed name of the job, if the form asks for it."""

    name: str | None = None


class SomeLimits(msgspec.Struct, forbid_unknown_fields=True):
    """Limits, as typed texts."""

    max_failures: str | None = None
    concurrency: str | None = None
    rate: str | None = None
    priority: str | None = None
    keep: str | None = None


def form(act: Callable[[Call[Any, Any]], Awaitable[object]]) -> Callable[[Call[Any, Any]], Awaitable[Response]]:
    """Return a handler that applies this action to a job and redirects to its page."""

    async def handler(call: Call[Any, Any]) -> Response:
        await act(replace(call, query=DryRun()))
        return RedirectResponse(f"../{call.job}", 303)

    return handler


async def confirm_cancel(call: Call[Parts, NoBody]) -> Response:
    """Ask for confirmation before a job is cancelled."""
    job = await call.find_job(call.job)
    left = await _count_affected(call, actions.cancel)
    return _confirm(
        call, f"Cancel {job['name']}?",
        consequence=words.consequence_of_cancel(job, left),
        verb="Cancel the job", leave="Leave it running", reason=True,
    )  # fmt: skip


async def confirm_delete(call: Call[Parts, NoBody]) -> Response:
    """Ask for confirmation before a job is deleted."""
    job = await call.find_job(call.job)
    items = await _count_affected(call, actions.delete)
    return _confirm(
        call, f"Delete {job['name']}?",
        consequence=f"Its {words.count(items, 'item')}, with results, errors and history, will be lost.",
        verb="Delete the job", leave="Keep it", name_of=job["name"] if _asks_for_name(job) else None,
    )  # fmt: skip


async def delete(call: Call[Any, Any]) -> Response:
    """Delete a finished job."""
    job = await call.find_job(call.job)
    typed = (call.body.name or "").split()  # a page collapses white space, so compare words
    if _asks_for_name(job) and typed != job["name"].split():
        raise Refused(422, "nothing was deleted: the typed name is not the name of the job", code="name")
    await actions.delete(replace(call, query=DryRun()))
    return RedirectResponse("../../", 303)


async def run_again(call: Call[Any, Any]) -> Response:
    """Run the items of a finished job again, as a new job."""
    made = await submissions.run_again(call)
    return RedirectResponse(f"../{made.content['id']}", 303)


async def limit(call: Call[Any, Any]) -> Response:
    """Change limits of a job: an empty field changes nothing, and the word none removes a limit."""
    given = {name: value.strip() for name, value in msgspec.to_builtins(call.body).items() if value}
    changes = {name: None if value == "none" else value for name, value in given.items()}
    try:
        body = msgspec.convert(changes, actions.LimitChanges, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(422, f"nothing was changed: {error}", code="field") from None
    await actions.limit(replace(call, body=body))
    return RedirectResponse(f"../{call.job}", 303)


async def recount(call: Call[Any, Any]) -> Response:
    """Recount a job from its items, and show the differences."""
    found = await charts.verify(call)
    return render(call.request, "recount.html", {"found": found, "job": await call.find_job(call.job)})


async def _count_affected(call: Call[Any, Any], act: Callable[[Call[Any, Any]], Awaitable[Any]]) -> int:
    """Return how many items an action would change. Raises HTTPException if it is not possible."""
    found = await act(replace(call, query=DryRun(dry_run=True)))
    return int(found["items"])


def _asks_for_name(job: dict[str, Any]) -> bool:
    return int(job["total"]) > DELETED_WITHOUT_NAME


def _confirm(
    call: Call[Parts, NoBody], question: str, *, name_of: str | None = None, reason: bool = False, **texts: str
) -> Response:
    shown = {"question": question, "name_of": name_of, "reason": reason, "back": f"../{call.job}", **texts}
    return render(call.request, "confirm.html", shown, parts=call.query.part)
