"""Actions on a job: cancel, pause, resume, limit, delete; `retry` has a module of its own.

Each is one transaction, with a line in the job's history; a repeated action changes nothing.
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

#: Characters of a reason at most.
MAX_REASON_CHARACTERS = 500


def cancel(conn: Conn, job: int, by: Requester, *, reason: str | None = None) -> None:
    """Start nothing more of a job; it is `cancelled` once its last running item has ended.

    Raises NoSuchJob, NotPossible when it ended otherwise, and ValueError for a `reason` of more than 500 characters.
    """
    check_text("reason", reason, MAX_REASON_CHARACTERS)
    with action_transaction(conn):
        found = _lock_stages(conn, job, by)
        if stages.stop_parent(conn, job, found, "cancelled", reason):
            note_action(conn, job, by, "cancel", {"reason": reason} if reason else {})
        else:
            check(conn, job, by, "cancel")
        # Here, while its row is locked: a publisher may lock it next, a job that is locked is passed by, and with no
        # worker nobody looks again.
        for one in (job, *(stage.id for stage in found)):
            jobs.try_close_stopped(conn, JobPage(one - 1, one))
    stages.update_parents(conn)


def pause(conn: Conn, job: int, by: Requester) -> None:
    """Start nothing more of a job until it is resumed. Raises NoSuchJob, and NotPossible when it is over."""
    _switch(conn, job, by, "pause", jobs.pause_job)


def resume(conn: Conn, job: int, by: Requester) -> None:
    """Let a paused job go on. Raises NoSuchJob, and NotPossible when it is over."""
    _switch(conn, job, by, "resume", jobs.resume_job)


def _switch(conn: Conn, job: int, by: Requester, action: str, change: Callable[[Conn, int], bool]) -> None:
    """Change a job and its stages; note it when the job was not so already; refuse when it is over."""
    with action_transaction(conn):
        found = _lock_stages(conn, job, by)
        if change(conn, job):
            for stage in found:
                change(conn, stage.id)
            note_action(conn, job, by, action)
        else:
            check(conn, job, by, action)


def seal(conn: Conn, job: int, by: Requester) -> None:
    """Take no more items from outside: the job completes with those that it has. It may be open for more, or a
    submission that broke off.

    Raises NoSuchJob, and NotPossible for a job that was stopped, is being submitted, or is not sealed by hand.
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
    """Change limits of a job (see `Limits`): None takes a limit away, a limit that is not named stays.

    The limits of a job that is over hold when it is opened again. Those of a job with stages hold for each of its
    stages, and limits that were set for one stage stay; a stage is kept as long as its parent. Raises NoSuchJob, and
    ValueError for limits that make no sense.
    """
    Limits.check_names(changes)
    given = Limits.from_json(changes)
    with action_transaction(conn):
        meant = at_database_time(conn, given).as_json()  # the same now for all stages
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
    """Whether that changed anything. Of a job with stages only `keep` goes into a column: the others hold for its
    stages.
    """
    known = fetch_value(conn, "job_limits", job=job)
    if known is None:  # it was deleted a moment ago
        raise NoSuchJob(f"there is no job {job}")
    limits = Limits.from_json({**known, **changes})
    words = limits.as_json()
    columns = (Limits(keep=limits.keep) if has_stages else limits).columns()
    if words != known:
        execute(conn, "limit_job", job=job, limits=Jsonb(words), **columns)
        execute(conn, "keep_hold", job=job)
    return bool(words != known)


def delete(conn: Conn, job: int, by: Requester) -> None:
    """Delete a finished job: nobody sees it from now on, and the sweep or `retention.delete_rows` deletes its rows.

    Its history goes with it, so the log says who deleted it. Raises NoSuchJob, and NotPossible while it is open.
    """
    with action_transaction(conn):
        check(conn, job, by, "delete")
        if not retention.mark_deleted(conn, [job]):
            refuse(job, job_status(conn, job, by), WHY["delete"])  # it was opened, or deleted, a moment ago
    log.info("job %d is deleted by %r, %s", job, by.who or "somebody", by.via)


def _lock_stages(conn: Conn, job: int, by: Requester) -> list[StageRow]:
    """Lock a job that has stages; return these. Raises NoSuchJob, and NotPossible for a job that is a stage itself."""
    status = job_status(conn, job, by)
    refuse_stage(job, status)
    if not status.has_stages:
        return []
    stages.lock_parent(conn, job)
    return stages.list_stages(conn, job)
