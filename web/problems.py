"""Answers: JSON, and errors as ``application/problem+json`` (RFC 9457), never a traceback."""

import json
from collections.abc import Awaitable, Callable
from http.client import responses
from typing import Any

import msgspec
import psycopg
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from callboard.middleware.submission.submission import SubmittedElsewhere
from callboard.sql.errors import RAISED, REFUSALS, UserFunctionFailed, refusal
from callboard.sql.migrate import MISFIT
from callboard.sql.settings import NotConfigured
from callboard.sql.writes.requests import NoSuchItem, NoSuchJob, NotPossible
from callboard.web.database import Busy
from callboard.web.parameters import Refused

UNREACHABLE = (
    "the database can't be reached: check that PostgreSQL runs and that DATABASE_URL leads to it; "
    "this works again by itself when the database answers"
)
SLOW = "this took longer than 5 s and was stopped: use a smaller limit or another filter"
BUSY = "too many changes wait for the database, and nothing was changed: try again"
BEHIND = "the database's schema does not fit this code: run `callboard migrate`"
BROKEN = "this request failed by an error in Callboard itself; the server's log has the traceback"

#: The default name of a problem, by its status.
CODES = {
    400: "bad_request", 401: "no_login", 403: "forbidden", 404: "not_found", 405: "method", 408: "slow",
    409: "conflict", 413: "too_large", 415: "media_type", 421: "host", 422: "invalid", 429: "too_many", 500: "internal",
    503: "unavailable",
}  # fmt: skip


def encode(content: Any) -> bytes:
    """Encode JSON. A result may contain half of a surrogate pair, which needs an escape, or an integer of any size."""
    try:
        return msgspec.json.encode(content)
    except (UnicodeEncodeError, OverflowError):
        plain = msgspec.to_builtins(content, builtin_types=(int,))
        return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode("ascii")


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return encode(content)


#: The key of the request's scope with the function that renders a problem as a page, for requests of browsers.
AS_PAGE = "callboard.problem_page"


class Problem(Json):
    """An error: `detail` says what is wrong and what to do, `code` is its name for programs. A browser that asks for a
    page gets the error as a page.
    """

    media_type = "application/problem+json"

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        title, code = responses.get(status, ""), CODES.get(status, "error")
        #: The content of the document.
        self.document = {
            "type": "about:blank",
            "title": title,
            "status": status,
            "code": code,
            "detail": detail,
            **more,
        }
        super().__init__(self.document, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if AS_PAGE in scope:
            await scope[AS_PAGE](self)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def refused(request: Request, error: HTTPException) -> Problem:
    """Answer a request that a handler or the router refused."""
    detail = error.detail
    if detail == responses.get(error.status_code) and error.status_code in (404, 405):
        detail = f"{request.method} {request.url.path} does not exist"
    more: dict[str, Any] = {}
    if isinstance(error, Refused):
        more = {"code": error.code, "errors": error.errors, **({"line": error.line} if error.line else {})}
    return Problem(error.status_code, detail, dict(error.headers or {}), **more)


def problem(
    status: int, detail: str | None = None, headers: dict[str, str] | None = None
) -> Callable[[Request, Exception], Awaitable[Problem]]:
    """Return a handler that answers every error with this problem. `detail` None: the text of the error."""

    async def handler(_request: Request, error: Exception) -> Problem:
        return Problem(status, detail or str(error), headers)

    return handler


async def _refused_by_function(_request: Request | None, error: psycopg.Error) -> Problem:
    return Problem(409, refusal(error) or str(error))


async def _refused_by_right(_request: Request | None, error: psycopg.Error) -> Problem:
    what, do = REFUSALS[psycopg.errors.InsufficientPrivilege]
    return Problem(503, f"{what}: {error.diag.message_primary or error}; {do}")


HANDLERS: dict[Any, Any] = {
    HTTPException: refused,
    psycopg.OperationalError: problem(503, UNREACHABLE, {"Retry-After": "1"}),
    psycopg.errors.QueryCanceled: problem(503, SLOW),
    **{kind: problem(503, f"{what}: {do}") for kind, (what, do) in REFUSALS.items()},
    psycopg.errors.InsufficientPrivilege: _refused_by_right,
    Busy: problem(503, BUSY, {"Retry-After": "1"}),
    NotConfigured: problem(503),
    **dict.fromkeys((NoSuchJob, NoSuchItem), problem(404)),
    **dict.fromkeys((NotPossible, SubmittedElsewhere), problem(409)),
    **dict.fromkeys((UserFunctionFailed, *RAISED), _refused_by_function),
    **dict.fromkeys(MISFIT, problem(503, BEHIND)),
    Exception: problem(500, BROKEN),
}
#: The errors with a handler of their own.
HANDLED = tuple(kind for kind in HANDLERS if kind is not Exception)


async def problem_of(request: Request | None, error: Exception) -> Response:
    """Answer an error that was raised outside of the handlers. `request` is None outside of a request."""
    kind = next(kind for kind in type(error).__mro__ if kind in HANDLERS)
    answer: Response = await HANDLERS[kind](request, error)
    return answer
