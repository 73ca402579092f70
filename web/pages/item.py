"""The page of an item: its arguments, its outcome, and each of its attempts."""

from dataclasses import replace
from typing import Any

from starlette.responses import RedirectResponse, Response

from callboard.sql.reads import queries
from callboard.sql.states import RETRIABLE, ItemState
from callboard.web import actions, items, parameters
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import Parts, render
from callboard.web.parameters import ITEMS, DryRun

#: The search for the previous item in a state: how many items back in each of the steps, the maximum number of pages in
#: #: each step, and the items of a page.
SPANS, PAGES, PAGE_ITEMS = (200, 20_000, ITEMS), 5, 500


class ItemQuery(Parts):
    """The state that the links to the previous and next item keep, and which parts of the page to render."""

    state: ItemState | None = None


async def item(call: Call[ItemQuery, NoBody]) -> Response:
    """Show an item."""
    asked: Call[Any, NoBody] = call
    found = await items.item(asked)
    position, job = found["item"], await call.find_job(call.job)
    after, _ = await call.read(queries.items(call.job, state=call.query.state, after=position, limit=1))
    shown = {
        "job": job,
        "item": found,
        "events": _timeline(job, found),
        "state": call.query.state,
        "next": after[0]["item"] if after else None,
        "previous": await _previous(call, position),
        "may_retry": found["state"] in RETRIABLE and not job["stopping"],
    }
    return render(call.request, "item.html", shown, parts=call.query.part)


async def _previous(call: Call[ItemQuery, NoBody], position: int) -> int | None:
    """Return the previous item in the requested state; None if there is none, or if it is too far back to search."""
    state = call.query.state
    if state is None:
        return position - 1 if position else None
    for span in SPANS:
        found, after = list[int](), max(position - span, 0) - 1
        for _ in range(PAGES):
            page, following = await call.read(
                queries.items(call.job, state=state, after=after, limit=PAGE_ITEMS, cap=0)
            )
            found += [one["item"] for one in page if one["item"] < position]
            if following is None or following >= position - 1:
                if found:
                    return found[-1]
                break
            after = following
    return None


def _timeline(job: dict[str, Any], found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the events of the item in order, each with its time. No row has the time when a bulk item was stored
    (after its job was created), nor when an item was published (before it started).
    """
    stored = ("sent", found["sent_at"]) if found["sent_at"] else ("job created", job["created_at"])
    events = [stored, ("started", found["first_started_at"])]
    for one in found["attempts"]:
        if one["started_at"] and one["started_at"] != found["first_started_at"]:
            events.append((f"attempt {one['attempt']} started", one["started_at"]))
        events.append((f"attempt {one['attempt']} {one['kind'].replace('_', ' ')}", one["ended_at"]))
    if found["started_at"] not in (time for _, time in events):
        events.append((f"attempt {found['attempt']} started", found["started_at"]))
    if found["state"] == "succeeded":
        events.append(("succeeded", found["finished_at"]))
    return sorted(((what, time) for what, time in events if time), key=lambda one: str(one[1]))


async def retry(call: Call[Any, Any]) -> Response:
    """Retry this item."""
    position = parameters.path_number(call.request, "item", ITEMS, f"item of job {call.job}")
    await actions.retry(replace(call, query=DryRun(), body=actions.Retry(items=[position])))
    return RedirectResponse(f"../{position}", 303)
