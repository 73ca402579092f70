"""The page of the tokens."""

from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import RedirectResponse, Response

from callboard.sql.states import SCOPES
from callboard.web import tokens as endpoints
from callboard.web.endpoint import Call, NoBody
from callboard.web.pages.page import render
from callboard.web.parameters import After, Page


class TokensQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Where the list goes on."""

    after: After = None


async def tokens(call: Call[TokensQuery, NoBody]) -> Response:
    """Show the tokens that let somebody in."""
    return await _page(call, call.query.after)


async def create(call: Call[Any, endpoints.NewToken]) -> Response:
    """Make a token, and show it: its secret is not shown again."""
    return await _page(call, None, made=await endpoints.create(call))


async def revoke(call: Call[Any, NoBody]) -> Response:
    """Revoke a token."""
    await endpoints.revoke(call)
    return RedirectResponse("../../tokens", 303)


async def _page(call: Call[Any, Any], after: str | None, made: dict[str, Any] | None = None) -> Response:
    found = await endpoints.tokens(replace(call, query=Page(after=after)))
    mine = [scope for scope in SCOPES if scope in call.who.scopes]
    return render(call.request, "tokens.html", {**found, "made": made, "scopes": mine, "tenant": call.tenant})
