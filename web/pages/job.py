"""The page of a job, and its forms."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response

from callboard.middleware.submission.item_encoding import key_texts
from callboard.sql.reads import queries
from callboard.sql.states import ItemState
from callboard.web import parameters
from callboard.web.answers import Job
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages import chart
from callboard.web.pages.page import Parts, data, render
from callboard.web.parameters import ITEMS, After

#: Maximum rows of a list, and of the list of items.
ROWS, ITEM_ROWS = 20, 25
#: Maximum number of pages that are read to find items in a rare state: most pages are then empty.
LOOKS = 20


class JobQuery(Parts):
    """Which items, and which parts of the page to render."""

    state: ItemState | None = None
    error: str | None = None
    key: str | None = None
    after: After = None


Row = dict[str, Any]
JobCall = Call[JobQuery, NoBody]


async def _head(call: JobCall, job: Row) -> Row | None:
    """Return the action that paused the job; None if it is not paused."""
    done = await _history(call, job) if job["state"] == "paused" else []
    return next((one for one in done if one["action"] == "pause"), None)


async def _nothing(_call: JobCall, _job: Row) -> None:
    return None


async def _running(call: JobCall, job: Row) -> list[Row]:
    """Return the running items; for a job of stages, those of the running stage."""
    if not job["running"]:
        return []
    owner = next((stage["job"] for stage in job["stages"] if stage["running"]), job["id"])
    found, _ = await call.read(queries.items(owner, state="running", limit=ROWS))
    return found


async def _chart(call: JobCall, job: Row) -> dict[str, Any]:
    if job["started_at"] is None and not job["stages"]:
        return {"columns": []}
    samples = await call.read(queries.samples(job["id"]))
    found = chart.columns(samples)
    return {"columns": found, "rows": chart.rows(found), "marks": chart.marks(samples, await _history(call, job))}


async def _errors(call: JobCall, job: Row) -> list[list[Row]]:
    """Return the error groups that are shown, and those that are folded."""
    found = await call.read(queries.errors(job["id"]))
    return [batch for batch in (found[:ROWS], found[ROWS:]) if batch]


async def _lanes(call: JobCall, job: Row) -> dict[str, Any]:
    """Return the lanes that are shown, whether there are more, and the number up to which waiting items are counted."""
    found = await call.read(queries.lanes(job["id"])) if job["limits"].get("concurrency_by") else []
    return {"rows": found[:ROWS], "more": len(found) > ROWS, "counted": queries.MAX_ROWS}


async def _items(call: JobCall, job: Row) -> dict[str, Any]:
    wanted, after = call.query, parameters.cursor(call.query.after, "items", ITEMS)
    if job["stages"]:
        return {"rows": [], "next": None}
    for _ in range(LOOKS):
        query = queries.items(
            job["id"], state=wanted.state, error=wanted.error, keys=key_texts(wanted.key), after=after, limit=ITEM_ROWS
        )
        found, after = await call.read(query)
        if found or after is None:
            break
    return {"rows": found, "next": parameters.next_page(after, "items")}


async def _callbacks(call: JobCall, job: Row) -> list[Row]:
    return (await call.read(queries.callbacks(job["id"])))[:ROWS]


async def _history(call: JobCall, job: Row) -> list[Row]:
    found, _ = await call.read(queries.actions(job["id"], limit=ROWS))
    return found


#: The parts of the page that update separately, and the functions that read their rows.
PARTS: dict[str, Callable[[JobCall, Row], Awaitable[Any]]] = {
    "head": _head,
    "chart": _chart,
    "stages": _nothing,
    "errors": _errors,
    "running": _running,
    "lanes": _lanes,
    "items": _items,
    "callbacks": _callbacks,
    "history": _history,
    "about": _nothing,
}


async def job(call: JobCall) -> Response:
    """Show a job."""
    found = await call.find_job(call.job)
    wanted = call.query.part
    rows = {name: await read(call, found) for name, read in PARTS.items() if not wanted or name in wanted}
    shown = {"job": found, "data": data(found, Job), "query": call.query, **rows}
    return render(call.request, "job.html", shown, parts=wanted)
