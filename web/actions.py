"""Handlers that change a job. Each answers with the job as it is then; after a DELETE there is none."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from callboard.sql.pool import Conn
from callboard.sql.writes import actions
from callboard.sql.writes import retry as retries
from callboard.sql.writes.requests import NoSuchJob, NotPossible, Requester
from callboard.sql.writes.retry import RetrySelection
from callboard.web import access, parameters
from callboard.web.api import find_job
from callboard.web.problems import Answer

T = TypeVar("T")
Write = Callable[[Conn, int, Requester, T], object]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an action without options: nothing, or an empty object."""


class Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a cancel."""

    reason: str | None = None


class Retry(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a retry: the items to retry, if not all that failed."""

    states: list[str] | None = None
    items: Annotated[list[int], msgspec.Meta(min_length=1, max_length=100_000)] | None = None
    error_type: str | None = None


async def limit(request: Request) -> Answer:
    """PATCH /api/jobs/{job}: any of `max_failures concurrency concurrency_by rate priority deadline at keep`.

    null removes a limit.
    """
    return await _act(request, dict[str, Any], actions.limit)


async def cancel(request: Request) -> Answer:
    """POST /api/jobs/{job}/cancel: `{"reason": …}` or nothing."""
    return await _act(
        request, Cancel, lambda conn, job, by, body: actions.cancel(conn, job, by, reason=body.reason)
    )


async def pause(request: Request) -> Answer:
    """POST /api/jobs/{job}/pause."""
    return await _act(request, Nothing, lambda conn, job, by, _: actions.pause(conn, job, by))


async def resume(request: Request) -> Answer:
    """POST /api/jobs/{job}/resume."""
    return await _act(request, Nothing, lambda conn, job, by, _: actions.resume(conn, job, by))


async def retry(request: Request) -> Answer:
    """POST /api/jobs/{job}/retry: `{"states": […], "items": […], "error_type": …}`, or nothing: all that failed."""

    def write(conn: Conn, job: int, by: Requester, body: Retry) -> int:
        return retries.retry(conn, job, by, RetrySelection(body.states, body.items, body.error_type))

    return await _act(request, Retry, write)


async def delete(request: Request) -> Response:
    """DELETE /api/jobs/{job}: a finished job and all of its rows."""
    await _write(request, Nothing, lambda conn, job, by, _: actions.delete(conn, job, by))
    return Response(status_code=204)


async def _act(request: Request, kind: type[T], write: Write[T]) -> Answer:
    return Answer(await find_job(request, await _write(request, kind, write)))


async def _write(request: Request, kind: type[T], write: Write[T]) -> int:
    """Run `write` with the request's job, its sender and its body, of type `kind`; return the job's id."""
    job, body = await access.job(request), await parameters.body(request, kind)
    by = Requester("http", _sender(request), access.tenant(request))
    try:
        await request.app.state.database.write(lambda conn: write(conn, job, by, body))
    except NoSuchJob as error:
        raise HTTPException(404, str(error)) from None
    except NotPossible as error:
        raise HTTPException(409, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    return job


def _sender(request: Request) -> str:
    """The name that the login gave, or else the address that the request came from."""
    if who := access.identity(request):
        return who.name
    return request.client.host if request.client else ""
