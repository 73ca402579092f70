"""Answers: JSON, and errors as ``application/problem+json`` (RFC 9457), never a traceback."""

import json
from http import HTTPStatus
from typing import Any

import psycopg
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from callboard.sql.migrate import ABSENT
from callboard.sql.settings import NotConfigured

UNREACHABLE = (
    "the database can't be reached: check that PostgreSQL runs and that DATABASE_URL leads to it; "
    "this works again by itself as soon as it does"
)
BEHIND = "the database's schema does not fit this code: run `callboard migrate`"


class Answer(JSONResponse):
    """JSON in ASCII: a result may hold half of a surrogate pair, which only an escape can carry."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Problem(Answer):
    """An error: `detail` says what is wrong and what to do."""

    media_type = "application/problem+json"

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        title = HTTPStatus(status).phrase
        content = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
        super().__init__(content, status, headers)


async def refused(request: Request, error: HTTPException) -> Problem:
    """What a handler, or the route table, refused."""
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        detail = f"{request.method} {request.url.path} is not served here"
    return Problem(error.status_code, detail, dict(error.headers or {}))


async def unreachable(_request: Request, _error: Exception) -> Problem:
    """The database is down or can't be reached in time."""
    return Problem(503, UNREACHABLE, {"Retry-After": "1"})


async def unset(_request: Request, error: Exception) -> Problem:
    """Nobody said where the database is."""
    return Problem(503, str(error))


async def misfit(_request: Request, _error: Exception) -> Problem:
    """A table or a column isn't there."""
    return Problem(503, BEHIND)


async def broken(_request: Request, _error: Exception) -> Problem:
    """A bug of ours; the server logs its traceback."""
    return Problem(500, "this request met an error in Callboard itself; the server's log has its traceback")


HANDLERS: dict[Any, Any] = {
    HTTPException: refused,
    psycopg.OperationalError: unreachable,
    NotConfigured: unset,
    **dict.fromkeys((*ABSENT, psycopg.errors.UndefinedColumn), misfit),
    Exception: broken,
}
