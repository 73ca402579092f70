"""POST /api/jobs/{job}/…: what is said to a job. Each answers with the job as it is then, if it is still there."""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from callboard.sql.pool import Conn
from callboard.sql.writes import actions
from callboard.sql.writes import retry as retries
from callboard.sql.writes.actions import NoSuchJob, NotPossible, Requester
from callboard.sql.writes.retry import RetrySelection
from callboard.web import parameters
from callboard.web.api import known
from callboard.web.problems import Answer


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """What needs no words."""


class Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """Why it is cancelled."""

    reason: str | None = None


class Retry(msgspec.Struct, forbid_unknown_fields=True):
    """Which items; without any of them all that failed."""

    states: list[str] | None = None
    items: Annotated[list[int], msgspec.Meta(min_length=1, max_length=100_000)] | None = None
    error_type: str | None = None


async def limit(request: Request) -> Answer:
    """PATCH /api/jobs/{job}: any of `max_failures concurrency concurrency_by rate priority deadline at keep`.

    null takes one away.
    """
    given = await parameters.body(request, dict[str, Any])
    return await _tell(request, lambda conn, job, by: actions.limit(conn, job, by, given))


async def cancel(request: Request) -> Answer:
    """POST /api/jobs/{job}/cancel: `{"reason": …}` or nothing."""
    given = await parameters.body(request, Cancel)
    return await _tell(request, lambda conn, job, by: actions.cancel(conn, job, by, reason=given.reason))


async def pause(request: Request) -> Answer:
    """POST /api/jobs/{job}/pause."""
    await parameters.body(request, Nothing)
    return await _tell(request, actions.pause)


async def resume(request: Request) -> Answer:
    """POST /api/jobs/{job}/resume."""
    await parameters.body(request, Nothing)
    return await _tell(request, actions.resume)


async def retry(request: Request) -> Answer:
    """POST /api/jobs/{job}/retry: `{"states": […], "items": […], "error_type": …}` or nothing: all that failed."""
    given = await parameters.body(request, Retry)

    def again(conn: Conn, job: int, by: Requester) -> int:
        return retries.retry(conn, job, by, RetrySelection(given.states, given.items, given.error_type))

    return await _tell(request, again)


async def delete(request: Request) -> Response:
    """DELETE /api/jobs/{job}: a finished job and all of its rows."""
    await parameters.body(request, Nothing)
    await _say(request, actions.delete)
    return Response(status_code=204)


async def _tell(request: Request, say: Callable[[Conn, int, Requester], Any]) -> Answer:
    return Answer(await known(request, await _say(request, say)))


async def _say(request: Request, say: Callable[[Conn, int, Requester], Any]) -> int:
    job = parameters.job(request)
    by = Requester("http", _who(request))
    try:
        await request.app.state.database.write(lambda conn: say(conn, job, by))
    except NoSuchJob as error:
        raise HTTPException(404, str(error)) from None
    except NotPossible as error:
        raise HTTPException(409, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    return job


def _who(request: Request) -> str:
    """The name that the login gave, or else where the request came from."""
    who = getattr(request.state, "who", None)
    if isinstance(who, str):
        return who
    return request.client.host if request.client else ""
