"""Endpoints that change a job. Each returns the changed job; DELETE returns no body."""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.reads.job_view import concerned
from callboard.sql.writes import actions, refusals, retry_action
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import DryRun, NoQuery


class Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """The reason of a cancellation."""

    reason: str | None = None


class Retry(msgspec.Struct, forbid_unknown_fields=True):
    """Which items to retry; default: all failed items. `error`: the id of an error group, or a type."""

    states: list[str] | None = None
    items: Annotated[list[int], msgspec.Meta(min_length=1, max_length=100_000)] | None = None
    error: str | None = None


class LimitChanges(msgspec.Struct, forbid_unknown_fields=True):
    """Limits, with the names and forms of `callboard.submit`; null removes a limit."""

    max_failures: int | str | msgspec.UnsetType | None = msgspec.UNSET
    concurrency: int | msgspec.UnsetType | None = msgspec.UNSET
    concurrency_by: str | dict[str, int] | msgspec.UnsetType | None = msgspec.UNSET
    lanes: int | msgspec.UnsetType | None = msgspec.UNSET
    rate: str | msgspec.UnsetType | None = msgspec.UNSET
    priority: int | msgspec.UnsetType | None = msgspec.UNSET
    deadline: str | msgspec.UnsetType | None = msgspec.UNSET
    at: str | msgspec.UnsetType | None = msgspec.UNSET
    keep: str | msgspec.UnsetType | None = msgspec.UNSET


async def limit(call: Call[NoQuery, LimitChanges]) -> dict[str, Any]:
    """Change limits of a job; null removes a limit."""
    changes = msgspec.to_builtins(call.body)
    return await _act(call, "limit", lambda conn, job, by: actions.limit(conn, job, by, changes))


async def cancel(call: Call[DryRun, Cancel]) -> dict[str, Any]:
    """Cancel a job: no more items start."""
    return await _act(call, "cancel", lambda conn, job, by: actions.cancel(conn, job, by, reason=call.body.reason))


async def pause(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Pause a job: no more items start until it is resumed."""
    return await _act(call, "pause", actions.pause)


async def resume(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Resume a paused job."""
    return await _act(call, "resume", actions.resume)


async def retry(call: Call[DryRun, Retry]) -> dict[str, Any]:
    """Retry items of a job that ended without success: by default all failed items."""
    given = call.body

    def write(conn: Conn, job: int, by: Requester) -> object:
        wanted = RetrySelection(given.states, given.items, given.error)
        if not call.query.dry_run:
            return retry_action.retry(conn, job, by, wanted)
        refusals.check(conn, job, by, "retry", items=wanted.items)
        return queries.run(conn, queries.retried_items(job, wanted.wanted, given.items, given.error))

    if call.query.dry_run:
        return {"items": await call.write(lambda conn: write(conn, call.job, call.requester))}
    return await _act(call, "retry", write)


async def delete(call: Call[DryRun, NoBody]) -> Response | dict[str, Any]:
    """Delete a finished job and all of its rows."""
    if call.query.dry_run:
        return await _act(call, "delete", actions.delete)
    await call.write(lambda conn: actions.delete(conn, call.job, call.requester))
    return Response(status_code=204)


async def _act(call: Call[Any, Any], action: str, write: Callable[[Conn, int, Requester], object]) -> dict[str, Any]:
    """Run the action and return the job. In a dry run, only check it and return how many items would change."""
    trial = isinstance(call.query, DryRun) and call.query.dry_run
    if trial:
        await call.write(lambda conn: refusals.check(conn, call.job, call.requester, action))
        return {"items": concerned(await call.find_job(call.job), action)}
    await call.write(lambda conn: write(conn, call.job, call.requester))
    return await call.find_job(call.job)
