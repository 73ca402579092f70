"""The page of an item: what it was given, what came of it, and each of its attempts."""

from dataclasses import replace
from typing import Any

from starlette.responses import RedirectResponse, Response

from callboard.sql.reads import queries
from callboard.sql.states import RETRIABLE, ItemState
from callboard.web import actions, items, parameters
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import Parts, render
from callboard.web.parameters import ITEMS, DryRun

#: Among how many items before an item the one before in its state is looked for: first few, then more; pages of each.
SPANS, PAGES, PAGE_ITEMS = (200, 20_000, ITEMS), 5, 500


class ItemQuery(Parts):
    """Among which items the next one is, and which parts of the page."""

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
    """The item before, in the state that is asked for. None: there is none, or too many far before to look for it."""
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
    """List the events of the item, each with its time, in order. No row keeps when a bulk item was stored, which was
    after its job was created, nor when an item was published, which was before it started.
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
