"""Endpoints of tokens. A login can only create tokens within its own rights."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from callboard.sql.reads import queries
from callboard.sql.states import Scope
from callboard.sql.writes import tokens as writes
from callboard.web import parameters
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import NoQuery, Page

Label: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=writes.MAX_CHARACTERS)]
Scopes: TypeAlias = Annotated[list[Scope], msgspec.Meta(min_length=1)]
JobId: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=parameters.IDS)]


class NewToken(msgspec.Struct, forbid_unknown_fields=True):
    """A token to create. With a `job` it only reads that job, and has no other scope."""

    name: Label
    kind: Annotated[Literal["api", "link"], msgspec.Meta(description="a link logs a browser in once")] = "api"
    scopes: Annotated[Scopes | None, msgspec.Meta(description="null: read, submit and control")] = None
    tenant: Annotated[Label | None, msgspec.Meta(description="null: all tenants")] = None
    job: JobId | None = None
    expires: Annotated[
        str | None, msgspec.Meta(description="a time span like 30d; null: one day for a link, otherwise forever")
    ] = None


async def tokens(call: Call[Page, NoBody]) -> dict[str, Any]:
    """List the valid tokens, the latest first. Their secrets are not stored."""
    before = parameters.cursor(call.query.after, "tokens")
    query = queries.tokens(before=before, limit=call.query.limit, tenant=call.tenant)
    found, following = await call.read(query)
    return {"tokens": found, "next": parameters.next_page(following, "tokens")}


async def create(call: Call[NoQuery, NewToken]) -> dict[str, Any]:
    """Create a token. Only this answer has its secret."""
    wanted = call.body
    # The token of a job always has one scope.
    scopes = ["read"] if wanted.job is not None else writes.scopes_of(wanted.scopes)
    if call.tenant not in (None, wanted.tenant or call.tenant):
        raise HTTPException(403, f"this login can only create tokens for the tenant {call.tenant}")
    if missing := sorted(set(scopes) - set(call.who.scopes)):
        raise HTTPException(403, f"this login can't create a token with the scope {missing[0]}, which it does not have")
    secret, made = await call.write(
        lambda conn: writes.create(
            conn,
            call.requester,
            name=wanted.name,
            kind=wanted.kind,
            scopes=scopes,
            tenant=call.tenant or wanted.tenant,
            job=wanted.job,
            expires=wanted.expires,
        )
    )
    return {"token": secret, **made}


async def revoke(call: Call[NoQuery, NoBody]) -> Response:
    """Revoke a token, and log out the browsers that logged in with it."""
    number = parameters.path_number(call.request, "token", parameters.IDS, "token")
    if not await call.write(lambda conn: writes.revoke(conn, number, call.requester)):
        raise HTTPException(404, f"there is no token {number}")
    return Response(status_code=204)
