"""A page: an endpoint that answers with HTML. Its forms answer with the page to go to. A browser that asks for a page
gets each problem as a page, too.
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
#: The pages of the bar at the top.
NAV = (("", "Jobs"), ("workers", "Workers"), ("queues", "Queues"), ("docs", "API"))
#: The blocks of templates that are no parts of a page.
FRAME = {"title", "top", "main"}


class Parts(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which parts of a page; none: the page."""

    part: list[str] = []


class PageEndpoint(Endpoint):
    """One method of one path of the pages; a body comes from a form."""

    __slots__ = ()

    async def _body(self, request: Request) -> msgspec.Struct:
        return parameters.fields(await parameters.form(request), self.body)


class ProblemPages:
    """ASGI middleware that has problems answered by pages, for a browser that asked for a page: also that of an unknown
    path, and of a sender who is not let in.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and _wants_page(Request(scope)):
            # Routes change the path that the request is said to be within.
            scope[AS_PAGE] = partial(_problem_page, Request(scope), root(Request(scope)))
        await self.app(scope, receive, send)


def _wants_page(request: Request) -> bool:
    wanted = request.headers.get("accept", "")
    return "text/html" in wanted and not parameters.path_within(request).startswith("/api/")


def _problem_page(request: Request, at: str, problem: Problem) -> HTMLResponse:
    # A browser loads the page again as soon as there is a database; a form must not be sent twice.
    passes = "retry-after" in problem.headers and request.method == "GET"
    shown = {"problem": problem.said, "passes": passes, "root": at}
    page = render(request, "problem.html", shown, status=problem.status_code)
    for name, value in problem.headers.items():
        page.headers.setdefault(name, value)
    return page


def root(request: Request) -> str:
    """The way from a page to where the app is mounted. It is relative, since a proxy may have taken a prefix away."""
    return "../" * (parameters.path_within(request).count("/") - 1) or "./"


def render(
    request: Request, template: str, context: Mapping[str, Any], *, parts: Sequence[str] = (), status: int = 200
) -> HTMLResponse:
    """A page; or only `parts` of it, which are blocks of its template, if any are given. Raises Refused for a part that
    the page does not have.
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
    # Once each: to repeat one costs a sender some bytes, and the event loop the making of the part.
    blocks = [page.blocks[name] for name in dict.fromkeys(parts)] or [page.root_render_func]
    # A result may contain half of a surrogate pair.
    made = "".join(text for block in blocks for text in block(values))
    return HTMLResponse(made.encode("utf-8", "replace"), status)


def _nav(who: Identity) -> Sequence[tuple[str, str]]:
    """The pages that somebody may see."""
    if who.job is not None or not who.scopes:
        return ()
    seen = NAV if who.tenant is None else (NAV[0], NAV[-1])
    return (*seen, ("tokens", "Tokens")) if "admin" in who.scopes and who is not access.EVERYONE else seen


def data(value: Any, kind: type[msgspec.Struct]) -> str:
    """Return the answer of the API for a script of the page, in an element of data: no text can end that element."""
    return encode(msgspec.convert(value, kind)).decode().replace("<", "\\u003c")
