"""The form of the list that acts on many jobs: it asks for confirmation with exact counts if needed."""

from dataclasses import replace
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec
from starlette.responses import RedirectResponse, Response

from callboard.web import bulk
from callboard.web.answers import BulkAction
from callboard.web.endpoint import Call
from callboard.web.jobs import JobConditions
from callboard.web.pages import words
from callboard.web.pages.page import render
from callboard.web.parameters import Refused

#: Actions that need no confirmation if the jobs are selected one by one. A search may match an unexpected number.
HARMLESS = ("pause", "resume")


class Many(msgspec.Struct, forbid_unknown_fields=True):
    """An action on many jobs: the selected ones, or all that match a search."""

    what: Literal["pause", "resume", "retry", "cancel", "delete"]
    ids: bulk.Ids | None = None
    q: str | None = None
    all: bool = False
    sure: bool = False


async def many(call: Call[Any, Any]) -> Response:
    """Run the action, or ask for confirmation first."""
    body: Many = call.body
    if not body.all and not body.ids:
        raise Refused(422, "no job is selected", code="ids")
    back = "../?" + urlencode({"q": body.q or ""})
    if body.sure or (body.what in HARMLESS and not body.all):
        await _act(call, dry_run=False)
        return RedirectResponse(back, 303)
    found = await _act(call, dry_run=True)
    jobs, items = words.count(found.jobs, "job"), words.count(found.items, "item")
    refused = f" {words.count(found.refused, 'job')} can't be: {found.refusals[0].detail}." if found.refused else ""
    again = [("what", body.what), ("q", body.q or ""), ("all", str(body.all).lower()), ("sure", "true")]
    shown = {
        "question": f"{body.what.capitalize()} {jobs}?",
        "consequence": f"This changes {items}.{refused}",
        "verb": f"{body.what.capitalize()} {jobs}",
        "leave": "Leave them as they are",
        "back": back,
        "fields": again + [("ids", one) for one in body.ids or ()],
    }
    return render(call.request, "confirm.html", shown)


async def _act(call: Call[Any, Any], *, dry_run: bool) -> BulkAction:
    """Run the action on all jobs, in as many requests as the API needs; return all counts and refusals."""
    body: Many = call.body
    chosen = JobConditions(q=body.q) if body.all else None
    wanted = bulk.ManyJobs(action=body.what, filter=chosen, ids=None if body.all else body.ids, dry_run=dry_run)
    done = await bulk.act(replace(call, body=wanted))
    while done.next is not None:
        step = await bulk.act(replace(call, body=msgspec.structs.replace(wanted, after=done.next)))
        done.jobs += step.jobs
        done.items += step.items
        done.refused += step.refused
        done.refusals += step.refusals
        done.next = step.next
    return done
