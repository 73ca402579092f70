"""Describes a job as the API does: derived counts, rate, estimate, reason of a standstill. Accesses no database."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from callboard.sql.json_values import iso
from callboard.sql.states import JOB_FINAL

#: The least seconds between a job's first and last flush from which its rate is computed.
SHORTEST_RUN_SECONDS = 0.05

#: Seconds between two values of the rate while a job does not change.
STEP_SECONDS = 5.0
MINUTE_SECONDS = 60

#: The largest part of an item in flight that counts as done, because it has not ended.
LARGEST_PART = 0.99

#: Why a job that is open for more items does not move.
OPEN = "it is open for more items until it is sealed"
SUBMITTING = "its submission is still going on"

#: The columns with times.
TIMES = ("created_at", "started_at", "finished_at", "updated_at")

Stored = Mapping[str, Any]
#: Why a job does not move, and when that ends, if the reason is a delay, a rate, a retry or a hold.
Standstill = tuple[str | None, datetime | None]


def job(row: Stored) -> dict[str, Any]:
    """Describe a job by a row of the statement `jobs`."""
    rate = _rate(row)
    parts = counts(row)
    standstill, until = stalled(row, parts)
    return {
        **{name: row[name] for name in ("id", "name", "key", "tenant", "actor", "state", "stopping", "reason")},
        **{name: row[name] for name in ("standing", "sealed")},
        "open": _is_open(row),
        **{name: row[name] for name in ("consumed", "total")},
        **parts,
        **{name: row[name] for name in ("retries", "crashes", "unkept")},
        "progress": progress(row),
        "rate": rate,
        "eta": None if standstill else iso(_eta(row, rate)),
        "stalled": standstill,
        "stalled_until": iso(until),
        "step": row["step"],
        "hung": row["hung"] or [],
        "stages": [],
        "parent": row["parent_id"],
        **{name: row[name] for name in ("stage", "limits", "metadata", "created_by")},
        **{name: iso(row[name]) for name in TIMES},
    }


def as_ended(row: Stored, then: Stored) -> Stored:
    """Return a job's row as it was when it ended: `then` is that row as JSON, `row` its current row of `jobs`."""
    times = {name: then[name] and datetime.fromisoformat(then[name]) for name in TIMES}
    return {**row, **then, **times, "alive": None, "hung": None}


def counts(row: Stored) -> dict[str, int]:
    """Count the items in each state of `ITEM_STATES`; the counts add up to `total`.

    Final states and `retrying` are stored; the others are derived from the rest, so the sum is always exact. In a job
    that is stopped, or being stopped, every item that has not ended and does not run counts as cancelled.
    """
    final = {name: row[name] for name in ("succeeded", "failed", "skipped")}
    if row["state"] in JOB_FINAL or row["stopping"]:
        left = row["total"] - _final(row)
        running = min(left, row["in_hand"]) if row["stopping"] else 0
        still = {"pending": 0, "queued": 0, "running": running, "retrying": 0}
        return {**still, **final, "cancelled": left - running}
    waiting = row["total"] - _final(row) - row["cancelled"] - row["retrying"]
    pending = min(waiting, row["total"] - row["published"] + row["in_turn"])
    running = min(waiting - pending, row["in_hand"])
    queued = waiting - pending - running
    moving = {"pending": pending, "queued": queued, "running": running, "retrying": row["retrying"]}
    return {**moving, **final, "cancelled": row["cancelled"]}


def concerned(job: Mapping[str, Any], action: str, states: Sequence[str] = ("failed",)) -> int:
    """Count the items of a described job that an action affects: the retried items of a retry, the deleted items of a
    deletion; for other actions, the items that have not started.
    """
    names = {"retry": states, "delete": ("total",)}.get(action, ("pending", "queued", "retrying"))
    return sum(job[name] for name in names)


def progress(row: Stored) -> float:
    """Return the share of the items that is done, 0 to 1, including the reported progress of items in flight; 1 only
    when every item is final, and for a completed job without items.
    """
    if not row["total"]:
        return 1.0 if row["state"] == "completed" else 0.0
    return float((_final(row) + row["cancelled"] + _in_part(row)) / row["total"])


def stalled(row: Stored, parts: Mapping[str, int]) -> Standstill:
    """Return why a job stands still, and until when; (None, None) if it does not: then `alive` is None."""
    if row["alive"] is None:
        return None, None
    if row["held"]:
        return _unsealed(row), None
    if sum(parts[name] for name in ("pending", "queued", "running", "retrying")):
        if reason := _without_worker(row):
            return reason, None
        later, until = _later(row, parts)
        return (later, until) if later else (_standstill(row, parts), None)
    return _unmade(row) if row["stage"] else _unsealed(row), None


def _is_open(row: Stored) -> bool:
    """Return whether items may be added: not during its submission, nor when it is being stopped."""
    ends = row["sealed"] or row["stopping"] or row["state"] in JOB_FINAL
    plain = not row["standing"] and row["stages"] is None and row["stage"] is None
    return plain and not ends and row["submitting"] is None


def _unmade(row: Stored) -> str:
    if row["maker"] is not None:
        return "the worker that made its items died; another will go on"
    return _without_worker(row) or f"its items are still to be made, and nothing has moved for {_quiet(row)}"


def _unsealed(row: Stored) -> str:
    if row["submitting"] is None:
        return OPEN
    if row["submitting"]:
        return SUBMITTING
    how = "submit it again with the same key, and it goes on" if row["key"] else "it will be stopped"
    return f"its submission broke off at input {row['consumed']}; {how}"


def _without_worker(row: Stored) -> str | None:
    if not row["alive"]:
        return "no worker is alive"
    return None if row["able"] else _without_actor(row["actor"])


def _without_actor(actor: str) -> str:
    return f"no worker that is alive has the actor {actor}"


def _later(row: Stored, parts: Mapping[str, int]) -> Standstill:
    if parts["queued"] + parts["running"]:
        return None, None
    if (held := _holds(row))[0]:
        return held
    ahead = {name: row[name] for name in ("not_before", "next_start", "due_at") if _ahead(row, name)}
    if "not_before" in ahead:
        return f"waiting for its time at {iso(ahead['not_before'])}", ahead["not_before"]
    if "next_start" in ahead:
        why = f"its rate is {row['limits']['rate']}: the next item starts at {iso(ahead['next_start'])}"
        return why, ahead["next_start"]
    if "due_at" in ahead:
        why = f"waiting for {'a retry' if parts['retrying'] else 'its time'} at {iso(ahead['due_at'])}"
        return why, ahead["due_at"]
    return None, None


def _holds(row: Stored) -> Standstill:
    """Return which hold is in force, until when and why; (None, None) if there is none."""
    until = {lane: datetime.fromisoformat(one["until"]) for lane, one in (row["holds"] or {}).items()}
    ahead = sorted((time, lane) for lane, time in until.items() if time > row["read_at"])
    if not ahead:
        return None, None
    time, lane = ahead[0]
    what = "held back" if lane == "*" else f"{lane or 'its lane'} is held back"
    others = f" (and {len(ahead) - 1} others)" if len(ahead) > 1 else ""
    reason = row["holds"][lane]["reason"]
    return f"{what} until {iso(time)}{others}{reason and f': {reason}'}", time


def _ahead(row: Stored, name: str) -> bool:
    return row[name] is not None and row[name] > row["read_at"]


def _standstill(row: Stored, parts: Mapping[str, int]) -> str:
    if parts["running"]:
        held = "1 item is" if parts["running"] == 1 else f"{parts['running']} items are"
        return f"{held} held by a dead worker, and will be requeued"
    if row["missing"]:  # one of several actors
        return _without_actor(row["missing"])
    if row["taken"] is False:  # the actor has moved to another queue
        return f"{_without_actor(row['actor'])} on the queue {row['queue']}"
    if row["trouble"]:
        return str(row["trouble"])
    others = f"; its workers run items of other jobs ({row['elsewhere']})" if row["elsewhere"] else ""
    return f"nothing has moved for {_quiet(row)}{others}"


def _quiet(row: Stored) -> str:
    """Return for how long nothing has moved, rounded down: a text that changes each second would be an event each."""
    still = int((row["read_at"] - row["moved_at"]).total_seconds())
    return f"{still // 60} min" if still >= MINUTE_SECONDS else f"{still // 10 * 10} s"


def _final(row: Stored) -> int:
    return int(row["succeeded"] + row["failed"] + row["skipped"])


def _in_part(row: Stored) -> float:
    """Return the sum of the reported progress of items in flight, in items: always less than the items left."""
    left = row["total"] - _final(row) - row["cancelled"]
    return 0.0 if row["finished_at"] else float(min(row["in_part"], left * LARGEST_PART))


def _rate(row: Stored) -> float | None:
    """Return items per second: over the whole run of an ended job, else over the last half minute. None before its
    first start, and if it was paused, or over, within that half minute.
    """
    if row["started_at"] is None:
        return None
    if row["finished_at"]:
        return whole_rate(row, _final(row), row["started_at"])
    since, before = row["sampled_at"], (row["sampled_final"] or 0) + (row["sampled_in_part"] or 0.0)
    if since is None:
        since, before = row["started_at"], 0.0
    if row["control_at"] and row["control_at"] > since:  # it was paused, or over, since then
        return None
    span = max((_as_of(row) - since).total_seconds(), 1.0)
    return _rounded(max(_final(row) + _in_part(row) - before, 0.0) / span)


def whole_rate(row: Stored, final: int, started: datetime) -> float | None:
    """Return the items per second of a whole run, from `started` to the end of the job."""
    # A short job may begin and end in one flush: then its creation is used as its start.
    spans = [(row["finished_at"] - start).total_seconds() for start in (started, row["created_at"])]
    span = spans[0] if spans[0] >= SHORTEST_RUN_SECONDS else spans[1]
    return _rounded(final / span) if span > 0 else None


def _rounded(rate: float) -> float:
    """Return a rate with three digits: an item may take an hour."""
    return float(f"{rate:.3g}")


def _as_of(row: Stored) -> datetime:
    """Return the time for which rate and estimate are computed: when the job last changed, moved on in steps of
    `STEP_SECONDS`. So two reads without a change between them return the same.
    """
    still = (row["read_at"] - row["updated_at"]).total_seconds()
    changed: datetime = row["updated_at"]
    return changed + timedelta(seconds=max(still // STEP_SECONDS, 0) * STEP_SECONDS)


def _eta(row: Stored, rate: float | None) -> datetime | None:
    """Return when the job ends at this rate, rounded to the second; None while more items may come, it is being
    stopped, or nothing moves.
    """
    if row["state"] != "running" or row["stopping"] or not row["sealed"] or not rate:
        return None
    try:
        left = (row["total"] - _final(row) - row["cancelled"] - _in_part(row)) / rate
        done: datetime = max(_as_of(row) + timedelta(seconds=left), row["read_at"])
        return (done + timedelta(seconds=1)).replace(microsecond=0)
    except OverflowError:
        return None
