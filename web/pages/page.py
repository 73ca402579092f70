"""A page: an endpoint that answers with HTML. Its forms answer with a redirect to a page. A browser that asks for a
page also gets each problem as a page.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from callboard.identity import Identity
from callboard.web import access, parameters
from callboard.web.endpoint import Endpoint
from callboard.web.login import cookie
from callboard.web.pages import words
from callboard.web.problems import AS_PAGE, Problem, encode
from callboard.web.templating import JINJA

JINJA.globals["words"] = words
JINJA.globals["ui"] = JINJA.get_template("macros.html").module
#: The pages in the navigation bar.
NAV = (("", "Jobs"), ("workers", "Workers"), ("queues", "Queues"), ("docs", "API"))
#: The blocks of templates that can't be requested as parts of a page.
FRAME = {"title", "top", "main"}


class Parts(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which parts of a page to render; none: the whole page."""

    part: list[str] = []


class PageEndpoint(Endpoint):
    """One method of one path of the pages; its body is a form."""

    __slots__ = ()

    async def _body(self, request: Request) -> msgspec.Struct:
        return parameters.fields(await parameters.form(request), self.body)


class ProblemPages:
    """ASGI middleware that renders problems as pages for a browser that asked for a page, also for an unknown path or a
    refused login.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and _wants_page(Request(scope)):
            # Routes change the root path of the scope, so these are made before routing.
            scope[AS_PAGE] = partial(_problem_page, Request(scope), root(Request(scope)))
        await self.app(scope, receive, send)


def _wants_page(request: Request) -> bool:
    wanted = request.headers.get("accept", "")
    return "text/html" in wanted and not parameters.path_within(request).startswith("/api/")


def _problem_page(request: Request, at: str, problem: Problem) -> HTMLResponse:
    # A browser reloads the page when the database is back; a form must not be sent twice.
    passes = "retry-after" in problem.headers and request.method == "GET"
    shown = {"problem": problem.document, "passes": passes, "root": at}
    page = render(request, "problem.html", shown, status=problem.status_code)
    for name, value in problem.headers.items():
        page.headers.setdefault(name, value)
    return page


def root(request: Request) -> str:
    """Return the relative path from a page to the root of the app: relative, because a proxy may strip a prefix."""
    return "../" * (parameters.path_within(request).count("/") - 1) or "./"


def render(
    request: Request, template: str, context: Mapping[str, Any], *, parts: Sequence[str] = (), status: int = 200
) -> HTMLResponse:
    """Return a page, or only `parts` of it, which are blocks of its template. Raises Refused for a part that the page
    does not have.
    """
    who = request.scope.get(access.IDENTITY, access.NOBODY)
    is_named = who is not access.EVERYONE and who is not access.NOBODY and who.job is None
    page = JINJA.get_template(template)
    known = [name for name in page.blocks if name not in FRAME]
    if not set(parts) <= set(known):
        raise parameters.wrong("part", f"must be one of {', '.join(known)}")
    values = page.new_context(
        {
            "root": root(request),
            "nav": _nav(who),
            "who": who if is_named else None,
            "has_session": is_named and cookie(request) in request.cookies,
            "may_control": "control" in who.scopes,
            "may_submit": "submit" in who.scopes,
            "may_share": "admin" in who.scopes,
            **context,
        }
    )
    # Render each part once: a sender could repeat names cheaply and make the event loop busy.
    blocks = [page.blocks[name] for name in dict.fromkeys(parts)] or [page.root_render_func]
    # A result may contain half of a surrogate pair.
    made = "".join(text for block in blocks for text in block(values))
    return HTMLResponse(made.encode("utf-8", "replace"), status)


def _nav(who: Identity) -> Sequence[tuple[str, str]]:
    """Return the pages that a login may see."""
    if who.job is not None or not who.scopes:
        return ()
    seen = NAV if who.tenant is None else (NAV[0], NAV[-1])
    return (*seen, ("tokens", "Tokens")) if "admin" in who.scopes and who is not access.EVERYONE else seen


def data(value: Any, kind: type[msgspec.Struct]) -> str:
    """Return the API's answer for a script of the page, escaped so that no text can end the data element."""
    return encode(msgspec.convert(value, kind)).decode().replace("<", "\\u003c")
