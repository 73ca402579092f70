"""Checks whether an action on a job is possible, for the actions themselves, and for callers that only check."""

from collections.abc import Iterable

from callboard.sql.pool import Conn
from callboard.sql.writes.requests import JobStatus, NoSuchItem, NotPossible, Requester, job_status, refuse

#: Why an action is not possible in the job's state.
WHY = {
    "cancel": "there is nothing left to cancel",
    "pause": "there is nothing left to pause",
    "resume": "only a paused job can be resumed; `retry` gives items another attempt",
    "retry": "its items can be retried when it has ended",
    "delete": "it can be deleted when it is over; `cancel` ends it",
}


def check(conn: Conn, job: int, by: Requester, action: str, *, items: Iterable[int] | None = None) -> None:
    """Raise NoSuchJob, NoSuchItem or NotPossible if the action would; change nothing. `items`: those to retry."""
    status = job_status(conn, job, by)
    if action == "retry":
        refused = status.stopping
        refuse_items(job, status, items)
    elif action == "delete":
        if status.parent is not None:
            raise NotPossible(f"job {job} is a stage of job {status.parent}: delete that one, with its stages")
        refused = not status.over
    else:
        refuse_stage(job, status)
        refused = status.state in ("completed", "failed") if action == "cancel" else status.ends
    if refused:
        refuse(job, status, WHY[action])


def refuse_stage(job: int, status: JobStatus) -> None:
    """Raise NotPossible for a stage: the action must be applied to its parent."""
    if status.parent is not None:
        raise NotPossible(f"job {job} is a stage of job {status.parent}: apply this to job {status.parent}")


def refuse_items(job: int, status: JobStatus, items: Iterable[int] | None) -> None:
    """Raise NotPossible for item numbers of a job with stages, and NoSuchItem for a number that the job has not."""
    if items is None:
        return
    if status.has_stages:
        raise NotPossible(f"job {job} has stages, and each has its own items: retry them in the stage's job")
    if (last := max(items, default=-1)) >= status.total:
        raise NoSuchItem(
            f"there is no item {last} of job {job}: its items are numbered from 0, and it has {status.total:,}"
        )
