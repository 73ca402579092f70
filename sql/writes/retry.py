"""Give items that ended without success another attempt, in one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import psycopg
from psycopg.rows import dict_row

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import StageRow
from callboard.sql.statements import statement
from callboard.sql.states import RETRIABLE
from callboard.sql.writes.actions import (
    LONGEST_TYPE,
    NotPossible,
    Requester,
    _note,
    _pause,
    _refuse,
    _stand,
    _text,
)
from callboard.sql.writes.jobs import close_jobs
from callboard.sql.writes.stages import lock, of

#: How often a retry is tried that others got in the way of.
MAX_TRIES = 5
#: Above every item.
MAX_ITEM = 2**31 - 1


class Overtaken(RuntimeError):
    """The job was opened or closed meanwhile: undo, and look again."""


@dataclass(frozen=True, slots=True)
class RetrySelection:
    """Which items to retry: of these states (the default: failed; with `items`, any that is not a success), of these
    numbers, of this type of error (with its module or without). Raises ValueError, with what is wrong and what is
    right, for what can't be chosen.
    """

    states: Iterable[str] | None = None
    items: Iterable[int] | None = None
    error_type: str | None = None

    def __post_init__(self) -> None:
        for name in ("states", "items"):
            object.__setattr__(self, name, _listed(name, getattr(self, name)))
        if self.states == ():
            raise ValueError(f"states is empty: name some of {', '.join(RETRIABLE)}, or leave it out")
        strange = [state for state in self.wanted if state not in RETRIABLE]
        if strange:
            raise ValueError(f"items can't be retried that are {strange[0]}: only {', '.join(RETRIABLE)}")
        for item in self.items or ():
            if type(item) is not int or not 0 <= item <= MAX_ITEM:
                raise ValueError(f"items must be whole numbers from 0 to {MAX_ITEM}, not {item!r:.100}")
        _text("error_type", self.error_type, LONGEST_TYPE)
        if self.error_type is not None and self.wanted != ("failed",):
            raise ValueError("only failed items have a type of error")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The states."""
        if self.states is not None:
            return tuple(self.states)
        return ("failed",) if self.items is None or self.error_type is not None else RETRIABLE

    @property
    def whole(self) -> bool:
        """Whether it takes all that was cancelled."""
        return "cancelled" in self.wanted and self.items is None and self.error_type is None


def _listed(name: str, given: object) -> tuple[Any, ...] | None:
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{name} must be a list, not {given!r:.100}")  # noqa: TRY004 — as all that is wrong with it
    return tuple(given)


def retry(conn: Conn, job: int, by: Requester, choice: RetrySelection) -> int:
    """Give items that ended without success another attempt, and open a job that is over; returns how many.

    Of a job with stages: those of all stages, and the stages that were not made yet are made then; said to a stage,
    only its own. Stages that are made are not made again. Raises NoSuchJob, and NotPossible while it is being stopped.
    """
    for left in reversed(range(MAX_TRIES)):
        try:
            stand = _stand(conn, job, by)
            if stand.parent is not None:
                return _retry_stages(conn, stand.parent, by, choice, only=job)
            return (_retry_stages if stand.staged else _retry)(conn, job, by, choice)
        except (Overtaken, psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
            # The last: a message of an item was parked or sent again while the job was opened.
            if not left:
                raise
    raise AssertionError  # the last try returned or raised


def _retry(conn: Conn, job: int, by: Requester, choice: RetrySelection) -> int:
    count = 0
    with conn.transaction():
        stand = _stand(conn, job, by)
        if stand.stopping:
            _refuse(job, stand, "its items can be retried when it has ended")
        if not any(getattr(stand, state) for state in choice.wanted):
            return 0
        if stand.over:
            _lock_items(conn, [job], [job], choice)
            count, changes = _reopened(conn, job, choice)
        else:
            count, changes = _retried(conn, job, choice, held=False)
        if not count:
            raise psycopg.Rollback  # nobody chose what was moved aside
        _reopen(conn, job, changes)
        _note(conn, job, by, "retry", {**_given(choice), "count": count})
    return count


def _retry_stages(
    conn: Conn, parent: int, by: Requester, choice: RetrySelection, only: int | None = None
) -> int:
    if choice.items is not None and only is None:
        raise NotPossible(f"job {parent} has stages, and each has its own items: say it to the stage's job")
    count = 0
    with conn.transaction():
        stand = lock(conn, parent)
        stages = of(conn, parent)
        over = [stage.id for stage in stages if stage.over]
        _lock_items(conn, [stage.id for stage in stages], over, choice)
        conn.execute(statement("lock_stages"), (parent,))
        stages = of(conn, parent)
        if stand.stopping or any(stage.stopping for stage in stages):
            raise NotPossible(f"job {parent} is being stopped: its items can be retried when it has ended")
        for stage, following in zip_longest(stages, stages[1:]):
            chosen = choice if only in (None, stage.id) else NOTHING
            if following is not None and following.partly:
                if stage.id == only:
                    raise NotPossible(
                        f"stage {following.name!r} is partly made from the results of job {only}: its items can be "
                        "retried when that is made"
                    )
                continue
            count += _retry_stage(conn, stage, by, chosen, paused=stand.state == "paused")
        if stand.over and (count or _goes_on(stages, choice)):
            count += _reopen_rest(conn, parent, stages, choice)
        elif not count:
            raise psycopg.Rollback  # nobody chose what was moved aside
        _note(
            conn, parent, by, "retry", {**_given(choice), "count": count, **({"job": only} if only else {})}
        )
    return count


def _retry_stage(conn: Conn, stage: StageRow, by: Requester, choice: RetrySelection, *, paused: bool) -> int:
    """Retry what is chosen of a stage; one that was stopped ends where it is, if that is nothing."""
    if stage.unmade and stage.over:
        return 0  # see _reopen_rest
    stopped = stage.over and stage.state != "completed"
    stand = _stand(conn, stage.id, by)
    if not stopped and (choice is NOTHING or not any(getattr(stand, state) for state in choice.wanted)):
        return 0
    count = 0
    with conn.transaction():
        count, changes = (_reopened if stage.over else _retried)(conn, stage.id, choice)
        if not count and not stopped:
            raise psycopg.Rollback  # nobody chose what was moved aside
        _reopen(conn, stage.id, changes)
        if paused:
            _pause(conn, stage.id)
    return count


def _goes_on(stages: Sequence[StageRow], choice: RetrySelection) -> bool:
    """Whether stages are to be made that were not, though no item of the others is run again."""
    unmade = [stage for stage in stages if stage.unmade]
    failed = any(stage.state == "failed" for stage in unmade)
    return bool(unmade) and ("cancelled" in choice.wanted or (failed and "failed" in choice.wanted))


def _reopen_rest(conn: Conn, parent: int, stages: Sequence[StageRow], choice: RetrySelection) -> int:
    """Open a job of stages, and what is unmade of it; a stage that was partly made goes on whole. How many items."""
    count = 0
    narrow = choice.items is not None or choice.error_type is not None
    chosen = WHOLE if narrow else RetrySelection(("cancelled", *choice.wanted))
    for stage in stages:
        if stage.unmade and stage.consumed:
            more, changes = _reopened(conn, stage.id, chosen)
            _reopen(conn, stage.id, changes)
            count += more
    conn.execute(statement("reopen_stages"), (parent,))
    conn.execute(statement("reopen_parent"), (parent,))
    close_jobs(conn)  # a stage that was stopped, and of which nothing runs again
    return count


def _reopen(conn: Conn, job: int, changes: Mapping[str, Any]) -> None:
    if not conn.execute(statement("reopen_job"), changes).fetchone():
        raise Overtaken(f"job {job} was opened or closed meanwhile")


def _lock_items(conn: Conn, jobs: Sequence[int], over: Sequence[int], choice: RetrySelection) -> None:
    """Lock what a retry may move of these jobs, some of which are over, before it locks a job."""
    parameters = {**_parameters(choice), "jobs": list(jobs), "over": list(over), "whole": choice.whole}
    conn.execute(statement("lock_retried"), parameters, prepare=False)  # see _ended


def _retried(
    conn: Conn, job: int, choice: RetrySelection, *, held: bool = True
) -> tuple[int, dict[str, Any]]:
    """Retry what ended of an open job; how many, and what the job's row gains and loses. `held`: see `_lock_items`."""
    ended, changes = _ended(conn, job, choice, held=held)
    return ended, {**changes, "over": False, "whole": False, "rest": 0}


def _reopened(conn: Conn, job: int, choice: RetrySelection) -> tuple[int, dict[str, Any]]:
    """Retry what ended of a job that is over, and go on with what was cancelled, as far as that is wanted."""
    locked = conn.execute(statement("lock_job"), (job,)).fetchone()
    if locked is None:
        raise Overtaken(f"job {job} was opened meanwhile")
    watermark, cancelled = locked
    rest = 0
    if not choice.whole:
        keep = list(choice.items or ()) if "cancelled" in choice.wanted else []
        rest = conn.execute(statement("cancel_rest"), {"job": job, "keep": keep}).rowcount
    conn.execute(statement("open_rest"), (job,))
    (published,) = next(conn.execute(statement("clear_outbox"), {"job": job}))
    below = watermark if choice.whole else MAX_ITEM
    sent = conn.execute(statement("send_rest"), {"job": job, "below": below}).rowcount
    ended, changes = _ended(conn, job, choice, held=True)
    changes["redo"] += sent
    changes["published"] += published
    count = ended - changes["cancelled"] + (cancelled if choice.whole else changes["cancelled"] + sent)
    return count, {**changes, "over": True, "whole": choice.whole, "rest": rest}


def _ended(conn: Conn, job: int, choice: RetrySelection, *, held: bool) -> tuple[int, dict[str, Any]]:
    parameters = {**_parameters(choice), "job": job, "error_type": choice.error_type, "held": held}
    with conn.cursor(row_factory=dict_row) as cursor:
        # Planned for these items: a plan that is kept for any goes through all of their numbers for each that failed.
        changes = next(cursor.execute(statement("retry_ended"), parameters, prepare=False))
    ended = changes["failed"] + changes["skipped"] + changes["cancelled"]
    return ended, {"job": job, "window": 2 * timings.PUBLISH_WINDOW_ITEMS, **changes}


def _parameters(choice: RetrySelection) -> dict[str, Any]:
    return {"states": list(choice.wanted), "items": None if choice.items is None else list(choice.items)}


def _given(choice: RetrySelection) -> dict[str, Any]:
    return {name: value for name, value in asdict(choice).items() if value is not None}


#: All that was cancelled, and nothing at all.
WHOLE = RetrySelection(["cancelled"])
NOTHING = RetrySelection(items=[])
