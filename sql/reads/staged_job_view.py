"""Jobs as the API describes them, those of stages by what their stages say. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from callboard.sql.reads import job_view
from callboard.sql.reads.job_view import Stored
from callboard.sql.states import ITEM_STATES, JOB_FINAL

#: What an open job of stages is done with at most: its last stage may still get items.
NEARLY = 0.999
#: What is told of each stage beside its counts.
TOLD = (
    "stage", "name", "actor", "state", "stopping", "reason", "sealed", "retries", "crashes", "progress",
    "rate", "eta", "stalled", "step", "limits", "started_at", "finished_at",
)  # fmt: skip

Job = dict[str, Any]


def jobs(rows: Sequence[Stored]) -> list[Job]:
    """The rows of `jobs.sql`: each job with its stages."""
    stages = defaultdict(list)
    for row in rows:
        if row["within"]:
            stages[row["parent_id"]].append(row)
    return [
        job_view.job(row) if row["stages"] is None else whole(row, stages[row["id"]])
        for row in rows
        if not row["within"]
    ]


def ended(rows: Sequence[Stored], then: Stored) -> Job:
    """A job as it was when it ended, `then` its row of that time as JSON, `within` it the rows of its stages."""
    known = {one["id"]: {**one, "within": True} for one in then.get("within") or ()}
    known[then["id"]] = {**then, "within": False}
    return jobs([job_view.at(row, known[row["id"]]) if row["id"] in known else row for row in rows])[0]


def whole(row: Stored, rows: Sequence[Stored]) -> Job:
    """A job of stages: its counts are the sums of theirs; rate, estimate and step are those of the current one."""
    ordered = sorted(rows, key=lambda one: int(one["stage"]))
    stages = [{**job_view.job(one), "on_failure": one["on_failure"]} for one in ordered]
    same = job_view.job(row)
    if not stages:
        return same
    now = current(stages)
    begun = [stage["started_at"] for stage in stages if stage["started_at"]]
    return {
        **same,
        **{
            name: sum(stage[name] for stage in stages)
            for name in ("total", *ITEM_STATES, "retries", "crashes")
        },
        "state": "running" if same["state"] == "pending" and begun else same["state"],
        "sealed": all(stage["sealed"] for stage in stages),
        "progress": _progress(row, stages),
        "rate": now["rate"],
        "eta": now["eta"],
        "stalled": now["stalled"] and f"stage '{now['name']}': {now['stalled']}",
        "step": now["step"],
        "hung": [{**one, "job": stage["id"]} for stage in stages for one in stage["hung"]],
        "started_at": min(begun, default=None),
        "updated_at": max(one["updated_at"] for one in (same, *stages)),
        "stages": [
            {
                "job": stage["id"],
                **{name: stage[name] for name in (*TOLD, "on_failure", "total", *ITEM_STATES)},
            }
            for stage in stages
        ],
    }


def current(stages: Sequence[Job]) -> Job:
    """Of the stages in order: the first that is open, or else the last that began."""
    still = [stage for stage in stages if stage["state"] not in JOB_FINAL]
    begun = [stage for stage in stages if stage["started_at"]]
    return still[0] if still else begun[-1] if begun else stages[-1]


def _progress(row: Stored, stages: Sequence[Job]) -> float:
    """The mean over the stages; one without items yet is not done."""
    mean = sum(float(stage["progress"]) for stage in stages) / len(stages)
    return mean if row["finished_at"] else min(mean, NEARLY)
