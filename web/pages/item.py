"""The page of an item: what it was given, what came of it, and each of its attempts."""

from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import RedirectResponse, Response

from callboard.sql.reads import queries
from callboard.web import actions, items, parameters
from callboard.web.answers import ItemState
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import render, wanted_parts
from callboard.web.parameters import ITEMS, DryRun

#: How an item can end that may be retried.
RETRIED = ("failed", "skipped", "cancelled")


class ItemQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Among which items the next one is, and which parts of the page."""

    state: ItemState | None = None
    part: list[str] = []


async def item(call: Call[ItemQuery, NoBody]) -> Response:
    """Show an item."""
    wanted_parts(call.query.part, ("item",))
    asked: Call[Any, NoBody] = call
    found = await items.item(asked)
    position, job = found["item"], await call.find_job(call.job)
    after, _ = await call.read(queries.items(call.job, state=call.query.state, after=position, limit=1))
    shown = {
        "job": job,
        "item": found,
        "events": _timeline(found),
        "state": call.query.state,
        "next": after[0]["item"] if after else None,
        "previous": position - 1 if position and call.query.state is None else None,
        "may_retry": found["state"] in RETRIED and not job["stopping"],
    }
    return render(call.request, "item.html", call.query.part, shown)


def _timeline(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What happened to the item, each with its time, in order."""
    events = [("started", found["first_started_at"])]
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
