"""A page: an endpoint that answers with HTML, its problems too. Its forms answer with the page to go to."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from callboard.identity import Identity
from callboard.web import access, parameters
from callboard.web.endpoint import Endpoint
from callboard.web.login import cookie
from callboard.web.pages import words
from callboard.web.problems import HANDLED, encode, problem_of
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

    async def _serve(self, request: Request) -> Response:
        try:
            return await super()._serve(request)
        except HANDLED as error:
            problem = await problem_of(request, error)
            shown = {"problem": msgspec.json.decode(problem.body)}
            return render(request, "problem.html", shown, status=problem.status_code)

    async def _body(self, request: Request) -> msgspec.Struct:
        return parameters.fields(await parameters.form(request), self.body)


def render(
    request: Request, template: str, context: Mapping[str, Any], *, parts: Sequence[str] = (), status: int = 200
) -> HTMLResponse:
    """A page; or only `parts` of it, which are blocks of its template, if any are given. Raises Refused for a part that
    the page does not have.
    """
    who = access.identity(request)
    is_named = who is not access.EVERYONE and who.job is None
    page = JINJA.get_template(template)
    known = [name for name in page.blocks if name not in FRAME]
    if not set(parts) <= set(known):
        raise parameters.wrong("part", f"must be one of {', '.join(known)}")
    values = page.new_context(
        {
            "root": "../" * (parameters.path_within(request).count("/") - 1) or "./",
            "nav": _nav(who),
            "who": who if is_named else None,
            "has_session": is_named and cookie(request) in request.cookies,
            "may_control": "control" in who.scopes,
            "may_submit": "submit" in who.scopes,
            "may_share": "admin" in who.scopes,
            **context,
        }
    )
    blocks = [page.blocks[name] for name in parts] or [page.root_render_func]
    # A result may contain half of a surrogate pair.
    made = "".join(text for block in blocks for text in block(values))
    return HTMLResponse(made.encode("utf-8", "replace"), status)


def _nav(who: Identity) -> Sequence[tuple[str, str]]:
    """The pages that somebody may see."""
    if who.job is not None:
        return ()
    seen = NAV if who.tenant is None else (NAV[0], NAV[-1])
    return (*seen, ("tokens", "Tokens")) if "admin" in who.scopes and who is not access.EVERYONE else seen


def data(value: Any, kind: type[msgspec.Struct]) -> str:
    """What the API answers, for a script of the page, in an element that holds data: no text can end that element."""
    return encode(msgspec.convert(value, kind)).decode().replace("<", "\\u003c")
