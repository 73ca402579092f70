"""Run again: copies the items of an ended job into a new job, in the database, chunk by chunk."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg

from callboard.sql.limits import TIMES, Limits
from callboard.sql.pool import Conn
from callboard.sql.rows import OldJob, SubmittedJob
from callboard.sql.statements import execute, fetch_one, fetch_value, required
from callboard.sql.states import FINAL, JOB_FINAL
from callboard.sql.writes import submission
from callboard.sql.writes.requests import (
    NoSuchJob,
    NotPossible,
    Requester,
    RowLocked,
    action_transaction,
    job_status,
    listed,
    note_action,
    refuse,
)

T = TypeVar("T")

#: Items that one transaction examines.
CHUNK_ITEMS = 20_000


@dataclass(frozen=True, slots=True)
class Again:
    """Which items to run again, and the options of the new job. `states`: only items with these final states. `name`
    and `metadata` None: those of the old job. `limits`: those that differ; None removes one. `key`: as in `submit`.
    Raises ValueError for invalid values.
    """

    states: Iterable[str] | None = None
    name: str | None = None
    key: str | None = None
    metadata: dict[str, Any] | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        states = listed("states", self.states)
        object.__setattr__(self, "states", states)
        if states is not None and (not states or not set(states) <= set(FINAL)):
            raise ValueError(f"states must be some of {', '.join(FINAL)}, not {list(states)!r:.100}")
        Limits.check_names(self.limits)


def run_again(write: Callable[[Callable[[Conn], Any]], Any], job: int, by: Requester, again: Again) -> tuple[int, bool]:
    """Create a job with the items of an ended one; return its id, and whether it is new. `write` runs each transaction.
    No item starts before all are copied. If the copy fails, the new job is discarded; a job with a key is continued
    when the same call is repeated.

    Raises NoSuchJob, KeyInUse, ValueError for invalid values, and NotPossible for a job that is open, has no such
    items, or has a locked row.
    """
    made: SubmittedJob = write(lambda conn: _create(conn, job, by, again))
    if made.elsewhere:
        raise NotPossible(f"job {made.job} with this key is being made: ask again when that has ended")
    if made.sealed or made.state in JOB_FINAL:
        return made.job, False
    try:
        while not write(lambda conn: _copy_chunk(conn, made.job, job, by, again)):
            pass
    except BaseException as error:
        goes_on = again.key is not None and (isinstance(error, RowLocked) or not isinstance(error, NotPossible))
        end = submission.release_submission if goes_on else submission.discard_job
        with suppress(psycopg.Error):  # its lease expires anyway
            write(lambda conn: end(conn, made.job))
        raise
    return made.job, True


def _create(conn: Conn, job: int, by: Requester, again: Again) -> SubmittedJob:
    status = job_status(conn, job, by)
    if status.has_stages:
        refuse(job, status, "it has stages, and each has its own items: run one of these again, by its own id")
    if not status.over:
        refuse(job, status, "its items can be run again when it has ended")
    old = fetch_one(conn, OldJob, "job_to_run_again", job=job, tenant=by.tenant)
    if old is None:
        raise NoSuchJob(f"there is no job {job}")
    if old.actor is None:
        raise _nothing(job)
    kept = {name: value for name, value in old.limits.items() if name not in TIMES}  # these times have passed
    known = submission.known_actor(conn, old.actor)
    return submission.create_job(
        conn, name=old.name if again.name is None else again.name, key=again.key, tenant=old.tenant, actor=old.actor,
        queue=known[0] if known else old.queue, chunk=old.chunk, created_by=by.who or None,
        metadata=old.metadata if again.metadata is None else again.metadata,
        limits=Limits.from_json({**kept, **again.limits}), targets=old.callbacks,
        held=True, alone=True, also_asked={"again": [job, again.states]},
    )  # fmt: skip


def _copy_chunk(conn: Conn, job: int, source: int, by: Requester, again: Again) -> bool:
    """Copy the next items of `source`, after the inputs that the job has consumed. Seal the job after the last ones.
    Returns whether these were the last.
    """
    states = None if again.states is None else list(again.states)
    with action_transaction(conn):
        total = fetch_value(conn, "lock_source", source=source)
        if total is None:
            raise NotPossible(f"job {source} was opened again or deleted, while its items were copied")
        found = required(submission.lock(conn, job))
        if found.stopped:
            raise NotPossible(f"job {job} was stopped, while items were copied into it")
        if found.sealed:
            return True
        low = found.consumed
        high = min(low + CHUNK_ITEMS, total)
        stored = execute(
            conn, "copy_old_items", job=job, total=found.total, source=source, low=low, high=high, states=states
        ).rowcount
        submission.add_to_total(conn, job, stored=stored, read=high - low)
        submission.renew_submissions(conn, [job])
        if high < total:
            return False
        if not found.total + stored:
            raise _nothing(source)
        submission.seal_job(conn, job)
        note_action(conn, source, by, "run again", {"job": job, "states": states, "count": found.total + stored})
        note_action(conn, job, by, "submit", {"items_of": source})
    return True


def _nothing(job: int) -> NotPossible:
    return NotPossible(f"job {job} has no such items: only bulk items are run again, not plain sends")
