"""The page with the list of jobs."""

from dataclasses import replace
from typing import Any

from starlette.responses import RedirectResponse, Response

from callboard.sql.reads import queries
from callboard.web import jobs, parameters
from callboard.web.endpoint import Call, NoBody
from callboard.web.jobs import JobQuery
from callboard.web.pages import search
from callboard.web.pages.page import render
from callboard.web.parameters import Refused

#: Maximum numbers of jobs and of standing jobs on a page.
JOBS, STANDING = 50, 20
PARTS = ("views", "jobs", "standing")
#: The views: the search words of each, and the name of its count.
VIEWS = {
    "All": ("", "all"),
    "Open": ("is:open", "open"),
    "Stalled": ("is:stalled", "stalled"),
    "Failed today": ("is:failing ended:24h", "failed_today"),
    "Ended": ("is:ended", "ended"),
}


class BoardQuery(JobQuery, kw_only=True):
    """Which jobs, and which parts of the page to render."""

    part: list[str] = []  # noqa: RUF012 - a Struct copies it


async def board(call: Call[BoardQuery, NoBody]) -> Response:
    """Show the jobs, the newest first. A search for the id of a job goes to its page."""
    query, trouble = call.query, None
    if not query.part and await _is_job(call, query.q or ""):
        return RedirectResponse(f"jobs/{query.q}", 303)
    wanted = query.part or PARTS
    found: dict[str, Any] = {name: {"jobs": [], "next": None} for name in ("jobs", "standing")}
    try:
        filtered = query.read().given
        if "jobs" in wanted:
            standing = None if filtered else False
            found["jobs"] = await _jobs(call, standing=standing, limit=min(query.limit, JOBS), after=query.after)
        if "standing" in wanted and not filtered:
            found["standing"] = await _jobs(call, standing=True, limit=STANDING)
    except Refused as error:
        trouble = error.detail.removeprefix("q is invalid: ")
    listed = [*found["jobs"]["jobs"], *found["standing"]["jobs"]]
    if "views" in wanted:
        asked: Call[Any, NoBody] = call
        found["counts"] = await jobs.counts(asked)
    shown: dict[str, Any] = {
        "q": query.q or "",
        "chips": [] if trouble else search.chips(query.q or ""),
        "suggestions": search.suggestions(listed),
        "after": query.after,
        "views": VIEWS,
        "trouble": trouble,
        "filtered": trouble or filtered,
    }
    shown["paces"] = await call.read(queries.paces([job["id"] for job in listed if not job["finished_at"]]))
    status = 400 if trouble else 200
    return render(call.request, "board.html", {**shown, **found}, parts=query.part, status=status)


async def _is_job(call: Call[BoardQuery, NoBody], text: str) -> bool:
    """Return whether the text is the id of a job that the sender may see."""
    number = parameters.number(text, parameters.IDS)
    return number is not None and await call.read(queries.job(number, tenant=call.tenant)) is not None


async def _jobs(call: Call[BoardQuery, NoBody], **part: Any) -> dict[str, Any]:
    """Return the API's answer for the list."""
    given = {name: getattr(call.query, name) for name in JobQuery.__struct_fields__}
    asked: Call[Any, NoBody] = call
    return await jobs.jobs(replace(asked, query=JobQuery(**{**given, **part})))
