"""Endpoints that change a job. Each answers with the job as it is then; after a DELETE there is none."""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from callboard.sql.pool import Conn
from callboard.sql.writes import actions
from callboard.sql.writes import retry as retries
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry import RetrySelection
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import NoQuery


class Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """Why."""

    reason: str | None = None


class Retry(msgspec.Struct, forbid_unknown_fields=True):
    """Which items to retry, if not all that failed; `error`: the id of a group of errors, or a type."""

    states: list[str] | None = None
    items: Annotated[list[int], msgspec.Meta(min_length=1, max_length=100_000)] | None = None
    error: str | None = None


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    """Limits by the names and in the forms of `callboard.submit`; null removes one."""

    max_failures: int | str | msgspec.UnsetType | None = msgspec.UNSET
    concurrency: int | msgspec.UnsetType | None = msgspec.UNSET
    concurrency_by: str | dict[str, int] | msgspec.UnsetType | None = msgspec.UNSET
    lanes: int | msgspec.UnsetType | None = msgspec.UNSET
    rate: str | msgspec.UnsetType | None = msgspec.UNSET
    priority: int | msgspec.UnsetType | None = msgspec.UNSET
    deadline: str | msgspec.UnsetType | None = msgspec.UNSET
    at: str | msgspec.UnsetType | None = msgspec.UNSET
    keep: str | msgspec.UnsetType | None = msgspec.UNSET


async def limit(call: Call[NoQuery, Limits]) -> dict[str, Any]:
    """Change limits of a job; null removes one."""
    changes = msgspec.to_builtins(call.body)
    return await _act(call, lambda conn, job, by: actions.limit(conn, job, by, changes))


async def cancel(call: Call[NoQuery, Cancel]) -> dict[str, Any]:
    """Cancel a job: no further item starts."""
    return await _act(call, lambda conn, job, by: actions.cancel(conn, job, by, reason=call.body.reason))


async def pause(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Pause a job: no further item starts until it is resumed."""
    return await _act(call, actions.pause)


async def resume(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Go on with a paused job."""
    return await _act(call, actions.resume)


async def retry(call: Call[NoQuery, Retry]) -> dict[str, Any]:
    """Retry items of a job that ended without success: all that failed, if nothing else is said."""

    def write(conn: Conn, job: int, by: Requester) -> int:
        wanted = RetrySelection(call.body.states, call.body.items, call.body.error)
        return retries.retry(conn, job, by, wanted)

    return await _act(call, write)


async def delete(call: Call[NoQuery, NoBody]) -> Response:
    """Delete a job that is over, and all of its rows."""
    await call.write(lambda conn: actions.delete(conn, call.job, call.requester))
    return Response(status_code=204)


async def _act(call: Call[Any, Any], write: Callable[[Conn, int, Requester], object]) -> dict[str, Any]:
    await call.write(lambda conn: write(conn, call.job, call.requester))
    return await call.find_job(call.job)
