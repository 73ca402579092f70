"""The action retry: gives items that ended without success another attempt, by hand, in one transaction.

For the actor's own retries of a failed attempt see `middleware/attempts/outcome`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import psycopg
from psycopg.rows import dict_row

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import StageRow
from callboard.sql.statements import execute, fetch_value, gives_row, statement
from callboard.sql.states import RETRIABLE
from callboard.sql.writes import jobs, stages
from callboard.sql.writes.refusals import WHY, refuse_items
from callboard.sql.writes.requests import (
    NotPossible,
    Requester,
    action_transaction,
    check_text,
    job_status,
    listed,
    note_action,
    refuse,
)

#: The most tries of a retry that conflicts with other transactions.
MAX_TRIES = 5
#: The most characters of an error's type.
MAX_ERROR_CHARACTERS = 1_000


class JobChanged(RuntimeError):
    """Another transaction reopened or closed the job meanwhile: roll back, and try again."""


@dataclass(frozen=True, slots=True)
class RetrySelection:
    """Which items to retry: those with these states (default: failed; with `items`: all without success), with these
    numbers, and with this error: the id of a group of errors, or a type with or without its module. Raises ValueError
    for an invalid selection; the text says what is allowed.
    """

    states: Iterable[str] | None = None
    items: Iterable[int] | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        for name in ("states", "items"):
            object.__setattr__(self, name, listed(name, getattr(self, name)))
        if self.states == ():
            raise ValueError(f"states is empty: name some of {', '.join(RETRIABLE)}, or leave it out")
        strange = [state for state in self.wanted if state not in RETRIABLE]
        if strange:
            raise ValueError(f"states must be some of {', '.join(RETRIABLE)}, not {strange[0]!r}")
        for item in self.items or ():
            if type(item) is not int or not 0 <= item <= timings.MAX_ITEM:
                raise ValueError(f"items must be whole numbers from 0 to {timings.MAX_ITEM}, not {item!r:.100}")
        check_text("error", self.error, MAX_ERROR_CHARACTERS)
        if self.error is not None and self.wanted != ("failed",):
            raise ValueError("error selects failed items: leave states out, or give failed")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The states."""
        if self.states is not None:
            return tuple(self.states)
        return ("failed",) if self.items is None or self.error is not None else RETRIABLE

    @property
    def all_cancelled(self) -> bool:
        """Whether all cancelled items are selected."""
        return "cancelled" in self.wanted and self.items is None and self.error is None

    @property
    def given(self) -> dict[str, Any]:
        """The given options, as a job's history records them."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of statements about the selected items."""
        return {"states": list(self.wanted), "items": None if self.items is None else list(self.items)}


ALL_CANCELLED = RetrySelection(["cancelled"])
NOTHING = RetrySelection(items=[])


def retry(conn: Conn, job: int, by: Requester, selection: RetrySelection) -> int:
    """Give selected items another attempt, and reopen an ended job; return the number of items.

    The selection applies to all stages of a job with stages, and stages that were not made yet are made then. If `job`
    is a stage, only its own items are retried. Stages that are made are not made again. Raises NoSuchJob, NoSuchItem,
    and NotPossible while the job is being stopped.
    """
    for left in reversed(range(MAX_TRIES)):
        try:
            status = job_status(conn, job, by)
            refuse_items(job, status, selection.items)
            if status.parent is not None:
                return _retry_stages(conn, status.parent, by, selection, only=job)
            return (_retry_stages if status.has_stages else _retry_job)(conn, job, by, selection)
        except (JobChanged, psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
            # UniqueViolation: the message of an item was parked or sent again while the job was reopened.
            if not left:
                raise
    raise AssertionError  # the last try returned or raised


def _retry_job(conn: Conn, job: int, by: Requester, selection: RetrySelection) -> int:
    count = 0
    with action_transaction(conn):
        status = job_status(conn, job, by)
        if status.stopping:
            refuse(job, status, WHY["retry"])
        if not any(getattr(status, state) for state in selection.wanted):
            return 0
        _lock_items(conn, [job], [job] if status.over else [], selection)
        count, changes = (_retry_ended_job if status.over else _retry_open_job)(conn, job, selection)
        if not count:
            raise psycopg.Rollback  # undo `cancel_rest`: cancelled items that were not selected stay unchanged
        _reopen(conn, job, changes)
        note_action(conn, job, by, "retry", {**selection.given, "count": count})
    return count


def _retry_stages(conn: Conn, parent: int, by: Requester, selection: RetrySelection, only: int | None = None) -> int:
    """Retry items of all stages, or of the stage `only`."""
    count = 0
    with action_transaction(conn):
        locked = stages.lock_parent(conn, parent)
        found = stages.list_stages(conn, parent)
        _lock_items(conn, [s.id for s in found], [s.id for s in found if s.over], selection)
        execute(conn, "lock_stages", parent=parent)
        found = stages.list_stages(conn, parent)
        if locked.stopping or any(stage.stopping for stage in found):
            raise NotPossible(f"job {parent} is being stopped: its items can be retried when it has ended")
        for stage, following in zip_longest(found, found[1:]):
            if following is not None and following.partly_made:
                if stage.id == only:
                    raise NotPossible(
                        f"stage {following.name!r} is partly made from the results of job {only}: its items can be "
                        "retried when that is made"
                    )
                continue
            selected = selection if only in (None, stage.id) else NOTHING
            count += _retry_stage(conn, stage, by, selected, paused=locked.state == "paused")
        if locked.over and (count or _makes_stages(found, selection)):
            count += _reopen_parent(conn, parent, found, selection)
        elif not count:
            raise psycopg.Rollback  # see _retry_job
        detail = {**selection.given, "count": count, **({"job": only} if only else {})}
        note_action(conn, parent, by, "retry", detail)
    return count


def _retry_stage(conn: Conn, stage: StageRow, by: Requester, selection: RetrySelection, *, paused: bool) -> int:
    """Retry selected items of a stage. A stopped stage is reopened even without such items, so that it completes."""
    if stage.unmade and stage.over:
        return 0  # see _reopen_parent
    stopped = stage.over and stage.state != "completed"
    status = job_status(conn, stage.id, by)
    if not stopped and (selection is NOTHING or not any(getattr(status, state) for state in selection.wanted)):
        return 0
    count = 0
    with action_transaction(conn):
        count, changes = (_retry_ended_job if stage.over else _retry_open_job)(conn, stage.id, selection)
        if not count and not stopped:
            raise psycopg.Rollback  # see _retry_job
        _reopen(conn, stage.id, changes)
        if paused:
            jobs.pause_job(conn, stage.id)
    return count


def _makes_stages(found: Sequence[StageRow], selection: RetrySelection) -> bool:
    """Return whether stages that were not made are made now, even if no item of the other stages runs again."""
    unmade = [stage for stage in found if stage.unmade]
    failed = any(stage.state == "failed" for stage in unmade)
    return bool(unmade) and ("cancelled" in selection.wanted or (failed and "failed" in selection.wanted))


def _reopen_parent(conn: Conn, parent: int, found: Sequence[StageRow], selection: RetrySelection) -> int:
    """Reopen a job of stages and its unmade stages; all items of partly made stages go on. Return their number."""
    count = 0
    narrow = selection.items is not None or selection.error is not None
    selected = ALL_CANCELLED if narrow else RetrySelection(("cancelled", *selection.wanted))
    for stage in found:
        if stage.unmade and stage.consumed:
            more, changes = _retry_ended_job(conn, stage.id, selected)
            _reopen(conn, stage.id, changes)
            count += more
    execute(conn, "reopen_stages", parent=parent)
    execute(conn, "reopen_parent", parent=parent)
    jobs.close_jobs(conn)  # for a stopped stage of which no item runs again
    return count


def _reopen(conn: Conn, job: int, changes: Mapping[str, Any]) -> None:
    if not gives_row(conn, "reopen_job", job=job, **changes):
        raise JobChanged(f"job {job} was reopened or closed meanwhile")


def _lock_items(conn: Conn, ids: Sequence[int], over: Sequence[int], selection: RetrySelection) -> None:
    """Lock the items of these jobs that a retry may change, before it locks a job. `over`: the ended jobs of these."""
    parameters = {**selection.parameters, "jobs": list(ids), "over": list(over), "whole": selection.all_cancelled}
    conn.execute(statement("lock_retried_items"), parameters, prepare=False)  # see _retry_ended_items


def _retry_open_job(conn: Conn, job: int, selection: RetrySelection) -> tuple[int, dict[str, Any]]:
    """Retry ended items of an open job. Returns their number, and the changes of the job's counters."""
    ended, changes = _retry_ended_items(conn, job, selection)
    return ended, {**changes, "over": False, "whole": False, "rest": 0}


def _retry_ended_job(conn: Conn, job: int, selection: RetrySelection) -> tuple[int, dict[str, Any]]:
    """Retry ended items of an ended job, and go on with its selected cancelled items. Returns their number, and the
    changes of the job's counters.
    """
    row = execute(conn, "lock_ended_job", job=job).fetchone()
    if row is None:
        raise JobChanged(f"job {job} was reopened meanwhile")
    watermark, cancelled, left = row
    whole = selection.all_cancelled
    rest = sent = 0
    if left and not whole:
        keep = list(selection.items or ()) if "cancelled" in selection.wanted else []
        rest = execute(conn, "cancel_rest", job=job, keep=keep).rowcount
    if left:  # otherwise these two statements would read all items in vain
        execute(conn, "reset_retrying", job=job)
    published = fetch_value(conn, "clear_outbox", job=job)
    if left:
        below = watermark if whole else timings.MAX_ITEM
        sent = execute(conn, "send_open_items", job=job, below=below).rowcount
    ended, changes = _retry_ended_items(conn, job, selection)
    changes["in_turn"] += sent
    changes["published"] += published
    count = ended - changes["cancelled"] + (cancelled if whole else changes["cancelled"] + sent)
    return count, {**changes, "over": True, "whole": whole, "rest": rest}


def _retry_ended_items(conn: Conn, job: int, selection: RetrySelection) -> tuple[int, dict[str, Any]]:
    parameters = {**selection.parameters, "job": job, "error": selection.error}
    with conn.cursor(row_factory=dict_row) as cursor:
        # Not prepared, so that it is planned for these items: a generic plan would scan all their numbers for each
        # failed item.
        changes = next(cursor.execute(statement("retry_ended_items"), parameters, prepare=False))
    ended = changes["failed"] + changes["skipped"] + changes["cancelled"]
    return ended, changes
