"""A page, an embedded page and a badge that show one job to the holder of its token; and the form for the token."""

from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import Response

from callboard.web import tokens
from callboard.web.answers import Job
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import Parts, data, render


class Share(msgspec.Struct, forbid_unknown_fields=True):
    """The lifetime of the token, as a time span like 30d; empty: forever."""

    expires: str | None = None


async def share(call: Call[Parts, NoBody]) -> Response:
    """Show the progress of a job, without its items."""
    return await _page(call, embedded=False)


async def embed(call: Call[Parts, NoBody]) -> Response:
    """Show the page of a shared job; pages of any site may embed it in a frame."""
    return await _page(call, embedded=True)


async def badge(call: Call[Any, NoBody]) -> Response:
    """Show the progress of a job as an image."""
    answer = render(call.request, "badge.svg", {"job": await call.find_job(call.job)})
    answer.headers["Content-Type"] = "image/svg+xml"
    return answer


async def make(call: Call[Any, Any]) -> Response:
    """Make a share token of this job, and show its URLs."""
    job = await call.find_job(call.job)
    wanted = tokens.NewToken(name=f"share of job {call.job}"[:100], job=call.job, expires=call.body.expires)
    made = await tokens.create(replace(call, body=wanted))
    base = str(call.request.url).rpartition("/jobs/")[0]
    shown = {"job": job, "token": made["token"], "base": base, "expires": made["expires_at"]}
    return render(call.request, "shared.html", shown)


async def _page(call: Call[Parts, NoBody], *, embedded: bool) -> Response:
    job = await call.find_job(call.job)
    shown = {"job": job, "data": data(job, Job), "embedded": embedded}
    return render(call.request, "share.html", shown, parts=call.query.part)
