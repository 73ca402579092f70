"""Jobs of stages: a parent without items, and a job for each stage, whose items are made from the results of the stage
before.

Code that changes a parent's state first locks its row, then reads its stages, so that no ended stage is reopened
meanwhile.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from psycopg.errors import LockNotAvailable

from callboard.sql import timings
from callboard.sql.arrays import parameters
from callboard.sql.callback_targets import Targets
from callboard.sql.errors import DATA_ERRORS
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import Parent, PlannedStage, StageClaim, StageRow
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_one, gives_row, required
from callboard.sql.writes import jobs, submission
from callboard.sql.writes.publishing import BATCH_BYTES
from callboard.sql.writes.requests import Requester, check_flag, check_name, note_action


def create(
    conn: Conn, planned: Sequence[PlannedStage], *, name: str, key: str | None, tenant: str | None,
    metadata: dict[str, Any] | None, created_by: str | None, limits: Limits, targets: Targets = None,
    key_reuse: bool = False, held: bool = False, alone: bool = False, trace: Mapping[str, str] | None = None,
) -> tuple[int, list[StageRow]]:  # fmt: skip
    """Create a job of stages, or find the one with this key; return its id and stages, and renew the submission of the
    first stage. `alone`: not if another submission is running, which `submitting` of that stage shows. The other
    arguments are those of `create_job`.
    """
    check_flag("key_reuse", key_reuse)
    for stage in planned:
        check_name("name", stage.name, submission.NAME_CHARACTERS)
    asked = {"stages": [(s.actor, s.makes, s.on_failure, s.chunk) for s in planned]}
    with transaction(conn):
        given = submission.job_parameters(
            conn, asked, name=name, key=key, tenant=tenant, metadata=metadata, created_by=created_by, limits=limits,
            targets=targets, trace=trace,
        )  # fmt: skip
        if key_reuse:
            submission.free_key(conn, given["tenant"], key)
        parent, created, known = next(execute(conn, "create_parent", **given, stages=len(planned)))
        submission.check_asked(key, parent, known, given)
        if created:
            kept = {**given, "keep": None}  # as long as their parent
            execute(conn, "create_stages", **kept, **parameters(PlannedStage, planned), parent=parent, held=held)
        found = list_stages(conn, parent)
        if not (alone and found[0].submitting):
            submission.renew_submissions(conn, [found[0].id])
    return int(parent), found


def list_stages(conn: Conn, parent: int) -> list[StageRow]:
    """Return the stages of a job, in order; an empty list for a job without stages."""
    return fetch(conn, StageRow, "list_stages", parent=parent)


# The parent's state -------------------------------------------------------------------------------------------------


def lock_parent(conn: Conn, parent: int) -> Parent:
    """Update the state of a job of stages from its stages, and keep it locked in the transaction."""
    update_parent(conn, parent)
    return _locked(conn, parent)


def update_parents(conn: Conn) -> list[Exception]:
    """Update the state of each job of stages whose stages changed. Any process may do it at any time: it is idempotent,
    and skips a job that another transaction has locked.

    Returns the errors of jobs that can't be updated, for example because of a user's trigger or a locked stage.
    """
    errors: dict[int, Exception] = {}
    for _ in range(2):  # a stage stopped in the first round may end in the second
        found = [parent for parent in fetch_ids(conn, "parents_to_update") if parent not in errors]
        for parent in found:
            try:
                with transaction(conn, timings.LOCK_WAIT_SECONDS):
                    if gives_row(conn, "try_lock_parent", parent=parent):
                        execute(conn, "forget_stage_changes", parent=parent)
                        update_parent(conn, parent)
            except (LockNotAvailable, *DATA_ERRORS) as error:
                errors[parent] = error
        if found:
            jobs.try_close_stopped(conn)
    return list(errors.values())


def update_parent(conn: Conn, parent: int) -> None:
    """Update the state of a job of stages from its stages, and keep it locked in the caller's transaction."""
    found = _locked(conn, parent)
    if found.over:
        return
    stopping = found.stopping
    stages = list_stages(conn, parent)
    begun = [stage.started_at for stage in stages if stage.started_at]
    if found.state == "pending" and begun:
        execute(conn, "start_parent", parent=parent, started=min(begun))
    bad = next((stage for stage in stages if stage.stops_others or stage.stopping), None)
    if bad is not None and not bad.stopping and stopping is None:
        stopping = "cancelled" if bad.state == "cancelled" else "failed"
        stop_parent(conn, parent, stages, stopping, bad.parents_reason)
    if to_make := [s.id for before, s in pairwise(stages) if before.state == "completed" and not s.sealed]:
        execute(conn, "mark_stages_to_make", stages=to_make)
    if all(stage.over for stage in stages):
        execute(conn, "end_parent", parent=parent, state=stopping or "completed")


def stop_parent(conn: Conn, parent: int, stages: Sequence[StageRow], state: str, reason: str | None) -> bool:
    """Stop a job and its open stages; return False when it was already stopped or over."""
    stopped = jobs.stop_job(conn, parent, state, reason)
    for stage in stages:
        if not stage.over:
            jobs.stop_job(conn, stage.id, "cancelled", reason)
    return stopped


def _locked(conn: Conn, parent: int) -> Parent:
    return required(fetch_one(conn, Parent, "lock_parent", parent=parent))


# The items of a stage -----------------------------------------------------------------------------------------------


def claim_stage(conn: Conn, worker: int, actors: Sequence[str], at_work: Sequence[int]) -> StageClaim | None:
    """Claim a due stage for a worker with these actors, which already makes the stages `at_work`; None if there is
    none.
    """
    claim = partial(StageClaim, worker)
    return fetch_one(conn, claim, "claim_stage", worker=worker, actors=list(actors), at_work=list(at_work))


def holds_claim(conn: Conn, making: StageClaim) -> bool:
    """Return whether the worker may go on making the stage; in a transaction, the answer is valid until its end."""
    return gives_row(conn, "lock_claimed_stage", job=making.job, worker=making.worker)


def store_inputs(conn: Conn, making: StageClaim, start: int, chunk: Sequence[tuple[bytes, str | None]]) -> bool:
    """Store the inputs of a stage from number `start` in one transaction; return False when the worker may not go on.

    A repetition after an uncertain commit is idempotent, because no other worker stores them meanwhile.
    """
    with transaction(conn):
        if not holds_claim(conn, making):
            return False
        how, consumed = submission.store_chunk(conn, making.job, start, chunk, keyed=False)
        return how == "stored" or consumed == start + len(chunk)


def seal_stage(conn: Conn, making: StageClaim) -> bool:
    """Seal a stage after all its items are made, and release it; return False when the worker may not go on."""
    with transaction(conn):
        held = holds_claim(conn, making)
        if held:
            submission.seal_job(conn, making.job)
        release_claim(conn, making)
    return held


def fail_stage(conn: Conn, making: StageClaim, reason: str, detail: dict[str, Any]) -> None:
    """Fail a stage whose items can't be made; `detail` goes into its parent's history."""
    with transaction(conn):
        if holds_claim(conn, making) and jobs.stop_job(conn, making.job, "failed", reason):
            note_action(conn, making.parent, Requester("worker", f"worker {making.worker}"), "fail", detail)
        release_claim(conn, making)
    jobs.try_close_stopped(conn)
    update_parents(conn)


def release_claim(conn: Conn, making: StageClaim) -> None:
    """Release a stage, so that another worker may go on with it."""
    execute(conn, "release_stage", job=making.job, worker=making.worker)


def results_page(
    conn: Conn, job: int, states: Sequence[str], after: int, limit: int
) -> list[tuple[int, bytes, str, str | None, str | None]]:
    """Return a page of a stage's items after item `after`, in these states: at most `limit`, and about `BATCH_BYTES`.
    Each is (item, arguments, state, result as JSON, why that is not kept).
    """
    page = {"states": list(states), "after": after, "limit": limit, "bytes": BATCH_BYTES}
    return execute(conn, "stage_results", job=job, **page).fetchall()
