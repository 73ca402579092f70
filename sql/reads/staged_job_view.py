"""Describes jobs as the API does, jobs of stages by their stages. Accesses no database."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from callboard.sql.reads import job_view
from callboard.sql.reads.job_view import Stored
from callboard.sql.states import ITEM_STATES, JOB_FINAL

#: The largest progress of an open job of stages: its last stage may still get items.
MAX_OPEN_PROGRESS = 0.999
#: The fields of a stage without its counts.
STAGE_FIELDS = (
    "stage", "name", "actor", "state", "stopping", "reason", "sealed", "retries", "crashes", "progress", "step",
    "started_at", "finished_at", "on_failure",
)  # fmt: skip

Job = dict[str, Any]


def jobs(rows: Sequence[Stored]) -> list[Job]:
    """Describe jobs, each with its stages, from rows of a statement `jobs…`; rows without an id are ignored."""
    stages = defaultdict(list)
    for row in rows:
        if row["within"]:
            stages[row["parent_id"]].append(row)
    return [
        job_view.job(row) if row["stages"] is None else parent(row, stages[row["id"]])
        for row in rows
        if row["id"] is not None and not row["within"]
    ]


def ended(rows: Sequence[Stored], then: Stored) -> list[Job]:
    """Describe the job of these rows, if any, as it was when it ended: `then` is its row of that time, with the rows of
    its stages in `within`.
    """
    known = {one["id"]: {**one, "within": True} for one in then.get("within") or ()}
    known[then["id"]] = {**then, "within": False}
    return jobs([job_view.as_ended(row, known[row["id"]]) if row["id"] in known else row for row in rows])


def parent(row: Stored, rows: Sequence[Stored]) -> Job:
    """Describe a job of stages: counts are sums over the stages; estimate and step come from the current stage. So does
    the rate, until the end; then it is the rate of the whole run.
    """
    ordered = sorted(rows, key=lambda one: int(one["stage"]))
    stages = [{**job_view.job(one), "on_failure": one["on_failure"]} for one in ordered]
    same = job_view.job(row)
    if not stages:
        return same
    now = current_stage(stages)
    begun = [stage["started_at"] for stage in stages if stage["started_at"]]
    rate = now["rate"]
    if row["finished_at"] and begun:
        ended = sum(stage[name] for stage in stages for name in ("succeeded", "failed", "skipped"))
        rate = job_view.whole_rate(row, ended, min(one["started_at"] for one in rows if one["started_at"]))
    return {
        **same,
        **{
            name: sum(stage[name] for stage in stages)
            for name in ("total", *ITEM_STATES, "retries", "crashes", "unkept")
        },
        "state": "running" if same["state"] == "pending" and begun else same["state"],
        "sealed": all(stage["sealed"] for stage in stages),
        "consumed": stages[0]["consumed"],
        "progress": _progress(row, stages),
        "rate": rate,
        "eta": now["eta"],
        "stalled": now["stalled"] and f"stage '{now['name']}': {now['stalled']}",
        "stalled_until": now["stalled_until"],
        "step": now["step"],
        "hung": [{**one, "job": stage["id"]} for stage in stages for one in stage["hung"]],
        "started_at": min(begun, default=None),
        "updated_at": max(one["updated_at"] for one in (same, *stages)),
        "stages": [
            {"job": stage["id"], **{name: stage[name] for name in (*STAGE_FIELDS, "total", *ITEM_STATES)}}
            for stage in stages
        ],
    }


def current_stage(stages: Sequence[Job]) -> Job:
    """Return the first open stage, else the last that began, else the last."""
    still = [stage for stage in stages if stage["state"] not in JOB_FINAL]
    begun = [stage for stage in stages if stage["started_at"]]
    return still[0] if still else begun[-1] if begun else stages[-1]


def _progress(row: Stored, stages: Sequence[Job]) -> float:
    """Return the mean over the stages; the progress of a stage without items yet is 0."""
    mean = sum(float(stage["progress"]) for stage in stages) / len(stages)
    return mean if row["finished_at"] else min(mean, MAX_OPEN_PROGRESS)
