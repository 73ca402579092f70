"""The endpoint that applies an action to many jobs: to those of a filter, or to those with given ids."""

import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.reads.job_filter import JobFilter
from callboard.sql.reads.job_view import concerned
from callboard.sql.writes import actions, refusals, retry_action
from callboard.sql.writes.requests import NoSuchJob, NotPossible, Requester, check_text
from callboard.sql.writes.retry_action import RetrySelection
from callboard.web import jobs, parameters
from callboard.web.answers import BulkAction, Refusal
from callboard.web.endpoint import Call
from callboard.web.parameters import IDS, After, NoQuery, Refused

#: Seconds after which a request starts no further job: the answer says where the next request continues.
WORK_SECONDS = 2.0
#: Jobs that one query reads.
PAGE_JOBS = 100
#: Maximum number of refused jobs that an answer lists; it counts the others.
NAMED_REFUSALS = 100

#: Ids of jobs.
Ids: TypeAlias = Annotated[
    list[Annotated[int, msgspec.Meta(ge=0, le=IDS)]], msgspec.Meta(min_length=1, max_length=1_000)
]


class ManyJobs(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An action on many jobs: those of a `filter`, or those with these `ids`.

    `reason` belongs to `cancel`. `states` belongs to `retry`: the items to retry; default: the failed items.
    """

    action: Literal["cancel", "pause", "resume", "retry", "delete"]
    filter: jobs.JobConditions | None = None
    ids: Ids | None = None
    dry_run: bool = False
    reason: str | None = None
    states: list[str] | None = None
    after: After = None


async def act(call: Call[NoQuery, ManyJobs]) -> BulkAction:
    """Apply an action to many jobs, the newest first, each in its own transaction.

    A request works for two seconds; `next` is the `after` of the request that continues. `dry_run` changes nothing and
    returns the numbers of jobs and items that would change.
    """
    body = call.body
    if (body.filter is None) == (body.ids is None):
        raise Refused(400, "give either filter or ids to choose the jobs", code="filter")
    wanted = None if body.filter is None else jobs.seen(call, body.filter)
    if body.filter is not None and not body.filter.read().given:
        raise Refused(400, "the filter is empty, which selects all jobs: give at least one condition", code="filter")
    before = parameters.cursor(body.after, "jobs")
    return await call.write(lambda conn: _act(conn, call.requester, body, wanted, before))


def _act(conn: Conn, by: Requester, body: ManyJobs, wanted: JobFilter | None, before: int | None) -> BulkAction:
    selection = RetrySelection(body.states)
    check_text("reason", body.reason, actions.MAX_REASON_CHARACTERS)
    one = {
        "cancel": lambda job: actions.cancel(conn, job, by, reason=body.reason),
        "pause": lambda job: actions.pause(conn, job, by),
        "resume": lambda job: actions.resume(conn, job, by),
        "retry": lambda job: retry_action.retry(conn, job, by, selection),
        "delete": lambda job: actions.delete(conn, job, by),
    }[body.action]
    act = (lambda job: refusals.check(conn, job, by, body.action)) if body.dry_run else one
    end = time.monotonic() + WORK_SECONDS
    done = BulkAction(action=body.action, dry_run=body.dry_run, jobs=0, items=0, refused=0, refusals=[], next=None)
    for job, following in _each(conn, by, body.ids, wanted, before):
        _try(done, act, job, lambda job: concerned(job, body.action, selection.wanted))
        done.next = parameters.next_page(following, "jobs")
        if time.monotonic() > end:
            break
    return done


def _try(
    done: BulkAction, act: Callable[[int], object], job: dict[str, Any], count: Callable[[dict[str, Any]], int]
) -> None:
    try:
        act(job["id"])
    except (NoSuchJob, NotPossible) as error:
        done.refused += 1
        if len(done.refusals) < NAMED_REFUSALS:
            done.refusals.append(Refusal(job=job["id"], detail=str(error)))
    else:
        done.jobs += 1
        done.items += count(job)


def _each(
    conn: Conn, by: Requester, ids: list[int] | None, wanted: JobFilter | None, before: int | None
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Yield the jobs, the newest first, each with the cursor after it: its id, or None for the last job."""
    if ids is not None:
        left = sorted({one for one in ids if before is None or one < before}, reverse=True)
        for one in left:
            found = queries.run(conn, queries.job(one, tenant=by.tenant))
            yield found or {"id": one}, None if one == left[-1] else one
    more = wanted is not None
    while more and wanted is not None:
        page, before = queries.run(conn, queries.jobs(wanted, before=before, limit=PAGE_JOBS))
        more = before is not None
        for job in page:
            yield job, job["id"] if more or job is not page[-1] else None
