"""Actions on a job: cancel, pause, resume, limit, delete; `retry` has a module of its own.

Each is one transaction, with a line in the job's history, and idempotent.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from psycopg.types.json import Jsonb

from callboard.sql.limits import Limits
from callboard.sql.pool import Conn
from callboard.sql.rows import JobPage, StageRow
from callboard.sql.signature import Signature
from callboard.sql.statements import execute, fetch_one, fetch_value, required
from callboard.sql.writes import jobs, retention, stages, submission
from callboard.sql.writes.refusals import WHY, check, refuse_stage
from callboard.sql.writes.requests import (
    NoSuchJob,
    Requester,
    action_transaction,
    at_database_time,
    check_text,
    job_status,
    note_action,
    refuse,
)

log = logging.getLogger("callboard.actions")

#: The most characters of a reason.
MAX_REASON_CHARACTERS = 500


def cancel(conn: Conn, job: int, by: Requester, *, reason: str | None = None) -> None:
    """Cancel a job: no more items start, and it is `cancelled` once its last running item has ended.

    Raises NoSuchJob, NotPossible when it ended in another way, and ValueError for a `reason` of more than 500
    characters.
    """
    check_text("reason", reason, MAX_REASON_CHARACTERS)
    with action_transaction(conn):
        found = _lock_stages(conn, job, by)
        if stages.stop_parent(conn, job, found, "cancelled", reason):
            note_action(conn, job, by, "cancel", {"reason": reason} if reason else {})
        else:
            check(conn, job, by, "cancel")
        # Here, while its row is locked: otherwise a publisher might lock it next, `try_close_stopped` skips locked
        # jobs, and without a worker no process would try again.
        for one in (job, *(stage.id for stage in found)):
            jobs.try_close_stopped(conn, JobPage(one - 1, one))
    stages.update_parents(conn)


def pause(conn: Conn, job: int, by: Requester) -> None:
    """Pause a job: no more items start until it is resumed. Raises NoSuchJob, and NotPossible when it is over."""
    _switch(conn, job, by, "pause", jobs.pause_job)


def resume(conn: Conn, job: int, by: Requester) -> None:
    """Resume a paused job. Raises NoSuchJob, and NotPossible when it is over."""
    _switch(conn, job, by, "resume", jobs.resume_job)


def _switch(conn: Conn, job: int, by: Requester, action: str, change: Callable[[Conn, int], bool]) -> None:
    """Change a job and its stages, and record the action if the job changed. Raises NotPossible when it is over."""
    with action_transaction(conn):
        found = _lock_stages(conn, job, by)
        if change(conn, job):
            for stage in found:
                change(conn, stage.id)
            note_action(conn, job, by, action)
        else:
            check(conn, job, by, action)


def seal(conn: Conn, job: int, by: Requester) -> None:
    """Seal a job: it takes no more items from outside, and completes with those that it has. It may be open for more
    items, or its submission may have broken off.

    Raises NoSuchJob, and NotPossible for a job that was stopped, is being submitted, or is sealed by Callboard itself.
    """
    with action_transaction(conn):
        status = job_status(conn, job, by)
        found = required(submission.lock(conn, job))
        if found.sealed:
            return
        if found.stopped:
            refuse(job, status, "there is nothing left to seal")
        if found.submitting:
            refuse(job, status, "its submission goes on, and seals it at its end")
        if status.parent is not None or (found.submitting is None and not found.is_open):
            refuse(job, status, "it is not sealed by hand: Callboard seals it")
        submission.seal_job(conn, job)
        note_action(conn, job, by, "seal")


def limit(conn: Conn, job: int, by: Requester, changes: Mapping[str, Any]) -> None:
    """Change limits of a job (see `Limits`): None removes a limit; limits that are not named stay.

    The limits of an ended job apply when it is reopened. The limits of a job with stages apply to each of its stages,
    and limits that were set for one stage stay. A stage is kept as long as its parent. Raises NoSuchJob, and ValueError
    for invalid limits.
    """
    Limits.check_names(changes)
    given = Limits.from_json(changes)
    with action_transaction(conn):
        meant = at_database_time(conn, given).as_json()  # the same time for all stages
        changes = {name: meant.get(name) for name in changes}
        status = job_status(conn, job, by)
        if status.parent is not None and "keep" in changes:
            raise ValueError(
                f"job {job} is a stage of job {status.parent}, and kept as long: set keep on job {status.parent}"
            )
        if (signature := fetch_one(conn, Signature.from_json, "job_signature", job=job)) is not None:
            signature.check_lane(given.lane_by)
        if _limit(conn, job, changes, has_stages=status.has_stages):
            for stage in stages.list_stages(conn, job):
                _limit(conn, stage.id, changes, has_stages=False)
            note_action(conn, job, by, "limit", changes)


def _limit(conn: Conn, job: int, changes: Mapping[str, Any], *, has_stages: bool) -> bool:
    """Change the limits of one job; return whether that changed anything. For a job with stages only `keep` is written
    to its column: the other limits apply to its stages.
    """
    known = fetch_value(conn, "job_limits", job=job)
    if known is None:  # it was deleted meanwhile
        raise NoSuchJob(f"there is no job {job}")
    limits = Limits.from_json({**known, **changes})
    wanted = limits.as_json()
    columns = (Limits(keep=limits.keep) if has_stages else limits).columns()
    if wanted != known:
        execute(conn, "limit_job", job=job, limits=Jsonb(wanted), **columns)
        execute(conn, "keep_hold", job=job)
    return bool(wanted != known)


def delete(conn: Conn, job: int, by: Requester) -> None:
    """Delete a finished job: it is hidden at once, and the sweep or `retention.delete_rows` deletes its rows.

    Its history is deleted, too, so the log records who deleted it. Raises NoSuchJob, and NotPossible while it is open.
    """
    with action_transaction(conn):
        check(conn, job, by, "delete")
        if not retention.mark_deleted(conn, [job]):
            refuse(job, job_status(conn, job, by), WHY["delete"])  # it was reopened, or deleted, meanwhile
    log.info("job %d is deleted by %r, %s", job, by.who or "somebody", by.via)


def _lock_stages(conn: Conn, job: int, by: Requester) -> list[StageRow]:
    """Lock a job that has stages; return the stages. Raises NoSuchJob, and NotPossible for a stage."""
    status = job_status(conn, job, by)
    refuse_stage(job, status)
    if not status.has_stages:
        return []
    stages.lock_parent(conn, job)
    return stages.list_stages(conn, job)
