"""Answers: JSON, and errors as ``application/problem+json`` (RFC 9457), never a traceback."""

import json
from collections.abc import Awaitable, Callable
from http.client import responses
from typing import Any

import psycopg
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from callboard.sql.migrate import ABSENT
from callboard.sql.settings import NotConfigured
from callboard.web.database import Busy

UNREACHABLE = (
    "the database can't be reached: check that PostgreSQL runs and that DATABASE_URL leads to it; "
    "this works again by itself as soon as it does"
)
SLOW = "this took longer than 5 s and was stopped: ask for less, by a smaller limit or another filter"
BUSY = "other changes are still waiting for the database, and nothing was changed: try again"
BEHIND = "the database's schema does not fit this code: run `callboard migrate`"
BROKEN = "this request met an error in Callboard itself; the server's log has its traceback"


class Answer(JSONResponse):
    """JSON in ASCII: a result may contain half of a surrogate pair, which only an escape can carry."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Problem(Answer):
    """An error: `detail` says what is wrong and what to do."""

    media_type = "application/problem+json"

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        title = responses.get(status, "")
        content = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
        super().__init__(content, status, headers)


async def refused(request: Request, error: HTTPException) -> Problem:
    """Answer a request that a handler or the route table refused."""
    detail = error.detail
    if detail == responses.get(error.status_code) and error.status_code in (404, 405):
        detail = f"{request.method} {request.url.path} is not served here"
    return Problem(error.status_code, detail, dict(error.headers or {}))


def problem(
    status: int, detail: str | None = None, headers: dict[str, str] | None = None
) -> Callable[[Request, Exception], Awaitable[Problem]]:
    """A handler that answers every error with this problem; its detail is the error's own text if none is given."""

    async def handler(_request: Request, error: Exception) -> Problem:
        return Problem(status, detail or str(error), headers)

    return handler


HANDLERS: dict[Any, Any] = {
    HTTPException: refused,
    psycopg.OperationalError: problem(503, UNREACHABLE, {"Retry-After": "1"}),
    psycopg.errors.QueryCanceled: problem(503, SLOW),
    Busy: problem(503, BUSY, {"Retry-After": "1"}),
    NotConfigured: problem(503),
    **dict.fromkeys((*ABSENT, psycopg.errors.UndefinedColumn), problem(503, BEHIND)),
    Exception: problem(500, BROKEN),
}
