"""The page of tokens."""

from dataclasses import replace
from typing import Any

from starlette.responses import RedirectResponse, Response

from callboard.sql.states import SCOPES
from callboard.web import tokens as endpoints
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import render
from callboard.web.parameters import Page


async def tokens(call: Call[Page, NoBody]) -> Response:
    """Show the valid tokens."""
    return await _page(call)


async def create(call: Call[Any, endpoints.NewToken]) -> Response:
    """Create a token and show its secret, which is not shown again."""
    return await _page(replace(call, query=Page()), made=await endpoints.create(call))


async def revoke(call: Call[Any, NoBody]) -> Response:
    """Revoke a token."""
    await endpoints.revoke(call)
    return RedirectResponse("../../tokens", 303)


async def _page(call: Call[Any, Any], made: dict[str, Any] | None = None) -> Response:
    found = await endpoints.tokens(call)
    mine = [scope for scope in SCOPES if scope in call.who.scopes]
    return render(call.request, "tokens.html", {**found, "made": made, "scopes": mine, "tenant": call.tenant})
