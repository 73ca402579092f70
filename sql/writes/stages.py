"""Jobs of stages: a parent without items, and a job for each stage, made from the results of the one before.

Whoever changes a parent's state has its row locked first; then its stages are read, and none that is over is opened
meanwhile.
"""

from collections.abc import Sequence
from typing import Any

from psycopg.types.json import Jsonb

from callboard.sql import timings
from callboard.sql.arrays import parameters
from callboard.sql.callback_targets import NO_TARGETS, Targets
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn
from callboard.sql.rows import NewStage, Parent, StageClaim, StageRow
from callboard.sql.statements import statement
from callboard.sql.writes import jobs, submission
from callboard.sql.writes.requests import Requester, note_action


class StagesDiffer(ValueError):
    """The job with this key is not one of these stages."""


def create(
    conn: Conn, planned: Sequence[NewStage], *, name: str, key: str | None, tenant: str, metadata: dict[str, Any],
    created_by: str | None, limits: Limits, targets: Targets = NO_TARGETS,
) -> tuple[int, list[StageRow]]:  # fmt: skip
    """A new job of stages, or the one that has this key; its id and stages. The submission of the first goes on from
    now. Raises StagesDiffer.
    """
    limited = Jsonb(limits.words())
    given = {"name": name, "key": key, "tenant": tenant, "created_by": created_by, "limits": limited}
    with conn.transaction():
        called = (words := targets.words()) and Jsonb(words)
        whole = {**given, "metadata": Jsonb(metadata), "stages": len(planned), "callbacks": called,
                 "keep": limits.columns()["keep"]}  # fmt: skip
        parent, created, count = next(conn.execute(statement("create_parent"), whole))
        if created:
            kept = {**limits.columns(), "keep": None}  # as long as their parent
            stages = parameters(NewStage, planned)
            conn.execute(statement("create_stages"), {**given, **kept, **stages, "parent": parent})
        found = list_stages(conn, parent)
        if count is None or [(s.actor, s.makes) for s in found] != [(s.actor, s.makes) for s in planned]:
            known = ", ".join(s.name for s in found) or "none"
            raise StagesDiffer(f"the job {parent} has the key {key!r}, and other stages than these: {known}")
        submission.renew_submissions(conn, [found[0].id])
    return int(parent), found


def list_stages(conn: Conn, parent: int) -> list[StageRow]:
    """The stages of a job, in order; none when it has none."""
    return [StageRow(*row) for row in conn.execute(statement("list_stages"), (parent,))]


# What becomes of the whole ------------------------------------------------------------------------------------------


def lock_parent(conn: Conn, parent: int) -> Parent:
    """Lock a job of stages for the transaction; it is as its stages are then."""
    update_parent(conn, parent)
    return _locked(conn, parent)


def update_parents(conn: Conn) -> None:
    """Let every job of stages follow its stages: anybody may, at any time; once it is done it changes nothing. It waits
    for nobody who changes one.
    """
    for _ in range(2):  # what is stopped in the first may end in the second
        found = [row[0] for row in conn.execute(statement("parents_to_update"))]
        for parent in found:
            with conn.transaction():
                if conn.execute(statement("try_lock_parent"), (parent,)).fetchone():
                    update_parent(conn, parent)
        if found:
            jobs.close_stopped(conn)


def update_parent(conn: Conn, parent: int) -> None:
    """Let a job of stages follow its stages, in the caller's transaction, which has its lock from here on."""
    found = _locked(conn, parent)
    if found.over:
        return
    stopping = found.stopping
    stages = list_stages(conn, parent)
    begun = [stage.started_at for stage in stages if stage.started_at]
    if found.state == "pending" and begun:
        conn.execute(statement("start_parent"), {"parent": parent, "started": min(begun)})
    bad = next((stage for stage in stages if stage.bad or stage.stopping), None)
    if bad is not None and not bad.stopping and stopping is None:
        stopping = "cancelled" if bad.state == "cancelled" else "failed"
        stop_parent(conn, parent, stages, stopping, bad.why)
    if all(stage.over for stage in stages):
        _end(conn, parent, stopping or "completed")


def stop_parent(conn: Conn, parent: int, stages: Sequence[StageRow], state: str, reason: str | None) -> bool:
    """Stop a job of stages, and those that are open; False when it was already."""
    stopped = jobs.stop_job(conn, parent, state, reason)
    for stage in stages:
        if not stage.over:
            jobs.stop_job(conn, stage.id, "cancelled", reason)
    return stopped


def _locked(conn: Conn, parent: int) -> Parent:
    row = conn.execute(statement("lock_parent"), (parent,)).fetchone()
    if row is None:
        raise RuntimeError(f"job {parent} has no stages any more; was a row deleted by hand?")
    return Parent(parent, *row)


def _end(conn: Conn, parent: int, state: str) -> None:
    conn.execute(statement("end_parent"), {"parent": parent, "state": state})


# How a stage is made ------------------------------------------------------------------------------------------------


def claim_stage(conn: Conn, worker: int, actors: Sequence[str], at_work: Sequence[int]) -> StageClaim | None:
    """The next stage to be made by this worker, which has these actors and makes those stages already."""
    parameters = {
        "worker": worker, "actors": list(actors), "at_work": list(at_work), "dead_after": timings.DEAD_AFTER_SECONDS,
    }  # fmt: skip
    row = conn.execute(statement("claim_stage"), parameters).fetchone()
    return StageClaim(worker, *row) if row else None


def holds_claim(conn: Conn, making: StageClaim) -> bool:
    """Whether a worker is to go on making; in a transaction nobody can tell it otherwise before its end."""
    return conn.execute(statement("lock_claimed_stage"), (making.job, making.worker)).fetchone() is not None


def store_inputs(
    conn: Conn, making: StageClaim, start: int, chunk: Sequence[tuple[bytes, str | None]]
) -> bool:
    """Store inputs number `start` and on of a stage, all or nothing; False when its worker is to end.

    Said again after a commit of which nobody knows, it is done once: nobody else stores them meanwhile.
    """
    with conn.transaction():
        if not holds_claim(conn, making):
            return False
        how, consumed = submission.store_chunk(conn, making.job, start, chunk, keyed=False)
        return how == "stored" or consumed == start + len(chunk)


def seal_stage(conn: Conn, making: StageClaim) -> bool:
    """All of a stage's items are made; False when its worker was to end."""
    with conn.transaction():
        held = holds_claim(conn, making)
        if held:
            submission.seal_job(conn, making.job)
        release_claim(conn, making)
    return held


def fail_stage(conn: Conn, making: StageClaim, reason: str, detail: dict[str, Any]) -> None:
    """A stage's items can't be made: it is `failed`, and its parent's history keeps `detail`."""
    with conn.transaction():
        if holds_claim(conn, making) and jobs.stop_job(conn, making.job, "failed", reason):
            note_action(conn, making.parent, Requester("worker", f"worker {making.worker}"), "fail", detail)
        release_claim(conn, making)
    jobs.close_stopped(conn)
    update_parents(conn)


def release_claim(conn: Conn, making: StageClaim) -> None:
    """A worker makes a stage no more; another may go on with it."""
    conn.execute(statement("release_stage"), (making.job, making.worker))


def results_page(
    conn: Conn, job: int, states: Sequence[str], after: int, limit: int
) -> list[tuple[int, bytes, str, str | None]]:
    """A page of a stage's items after `after`, in these states: (item, arguments, state, result as JSON)."""
    parameters = {"job": job, "states": list(states), "after": after, "limit": limit}
    return list(conn.execute(statement("stage_results"), parameters))
