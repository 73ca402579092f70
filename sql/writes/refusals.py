"""Checks whether an action on a job is possible, for the actions themselves, and for callers that only check."""

from callboard.sql.pool import Conn
from callboard.sql.writes.requests import JobStatus, NotPossible, Requester, job_status, refuse

#: Why an action is not possible in the job's state.
WHY = {
    "cancel": "there is nothing left to cancel",
    "pause": "there is nothing left to pause",
    "resume": "only a paused job can be resumed; `retry` gives items another attempt",
    "retry": "its items can be retried when it has ended",
    "delete": "it can be deleted when it is over; `cancel` ends it",
}


def check(conn: Conn, job: int, by: Requester, action: str, *, some_items: bool = False) -> None:
    """Raise NoSuchJob or NotPossible if the action would; change nothing. `some_items`: a retry of items by number."""
    status = job_status(conn, job, by)
    if action == "retry":
        refused = status.stopping
        if some_items and status.has_stages:
            refuse_items_of_stages(job)
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


def refuse_items_of_stages(job: int) -> None:
    """Raise NotPossible for item numbers of a job with stages."""
    raise NotPossible(f"job {job} has stages, and each has its own items: retry them in the stage's job")
