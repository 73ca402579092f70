"""What is said to a job: cancel, pause, resume, limit, retry, delete. Each in one transaction, with who said it;
saying it again changes nothing.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from typing import Any, NoReturn

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from callboard.sql import leaving, writes
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn
from callboard.sql.rows import StageRow
from callboard.sql.stages import follow, lock, of, stop
from callboard.sql.statements import statement
from callboard.sql.states import JOB_FINAL, RETRIABLE

log = logging.getLogger("callboard.control")

#: How often a retry is tried that others got in the way of.
TRIES = 5
#: Above every item.
EVERY = 2**31 - 1
#: Characters of a reason, and of the name of an error's type.
LONGEST_REASON, LONGEST_TYPE = 500, 1_000


class NoSuchJob(LookupError):
    """There is no job with this id."""


class NotPossible(RuntimeError):
    """The job is not in a state in which this can be done to it; the message says what it is, and what to do."""


class Overtaken(RuntimeError):
    """The job was opened or closed meanwhile: undo, and look again."""


@dataclass(frozen=True, slots=True)
class By:
    """Who acts, as far as it is known, from where (`cli`, `http`, `python`), and as which tenant (None: any)."""

    via: str
    who: str = ""
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
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
            if type(item) is not int or not 0 <= item <= EVERY:
                raise ValueError(f"items must be whole numbers from 0 to {EVERY}, not {item!r:.100}")
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


def _text(name: str, given: object, most: int) -> None:
    """Raise ValueError for what is no text that a row can hold."""
    if given is None:
        return
    if not isinstance(given, str) or len(given) > most:
        raise ValueError(f"{name} must be a text of at most {most} characters, not {given!r:.100}")
    if "\x00" in given or any("\ud800" <= sign <= "\udfff" for sign in given):
        raise ValueError(
            f"{name} holds what the database can't: a NUL character, or half of a surrogate pair"
        )


#: All that was cancelled, and nothing at all.
WHOLE = Choice(["cancelled"])
NOTHING = Choice(items=[])


@dataclass(frozen=True, slots=True)
class _Stand:
    state: str
    stopping: bool
    failed: int
    skipped: int
    cancelled: int
    staged: bool
    parent: int | None

    @property
    def over(self) -> bool:
        return self.state in JOB_FINAL

    @property
    def ends(self) -> bool:
        return self.over or self.stopping


def cancel(conn: Conn, job: int, by: By, *, reason: str | None = None) -> None:
    """Nothing of the job starts any more; it is `cancelled` when the last item in hand has ended.

    Raises NoSuchJob, NotPossible when it ended otherwise, and ValueError for a `reason` of more than 500 characters.
    """
    _text("reason", reason, LONGEST_REASON)
    with conn.transaction():
        stages = _whole(conn, job, by)
        if stop(conn, job, stages, "cancelled", reason):
            _note(conn, job, by, "cancel", {"reason": reason} if reason else {})
        elif (stand := _stand(conn, job, by)).state in ("completed", "failed"):
            _refuse(job, stand, "there is nothing left to cancel")
    writes.close_stopped(conn)
    follow(conn)


def pause(conn: Conn, job: int, by: By) -> None:
    """Nothing of the job starts until it is resumed. Raises NoSuchJob, and NotPossible when it is over."""
    with conn.transaction():
        stages = _whole(conn, job, by)
        if _pause(conn, job):
            for stage in stages:
                _pause(conn, stage.id)
            _note(conn, job, by, "pause")
        elif (stand := _stand(conn, job, by)).ends:
            _refuse(job, stand, "there is nothing left to pause")


def _pause(conn: Conn, job: int) -> bool:
    return conn.execute(statement("pause_job"), (job,)).fetchone() is not None


def resume(conn: Conn, job: int, by: By) -> None:
    """A paused job goes on. Raises NoSuchJob, and NotPossible when it is over."""
    with conn.transaction():
        stages = _whole(conn, job, by)
        if _resume(conn, job):
            for stage in stages:
                _resume(conn, stage.id)
            _note(conn, job, by, "resume")
        elif (stand := _stand(conn, job, by)).ends:
            _refuse(job, stand, "only what is paused is resumed; `retry` gives its items another attempt")


def _resume(conn: Conn, job: int) -> bool:
    return conn.execute(statement("resume_job"), (job,)).fetchone() is not None


def limit(conn: Conn, job: int, by: By, changes: Mapping[str, Any]) -> None:
    """Change what the job may do at most (see `Limits`); None takes a limit away, what is not named stays.

    Of a job that is over they hold when it is opened again; of one with stages they hold for each of them, and what was
    said to a stage of its own stays; a stage is kept as long as its parent. Raises NoSuchJob, and ValueError for what
    makes no sense.
    """
    strange = sorted(set(changes) - {field.name for field in fields(Limits)})
    if strange:
        known = ", ".join(sorted(field.name for field in fields(Limits)))
        raise ValueError(f"there is no limit {strange[0]!r}: only {known}")
    meant = Limits.of(changes).words()  # a span is one from now, for all of them
    changes = {name: meant.get(name) for name in changes}
    with conn.transaction():
        stand = _stand(conn, job, by)
        if stand.parent is not None and "keep" in changes:
            raise ValueError(
                f"job {job} is a stage of job {stand.parent}, and kept as long as that: say keep to that"
            )
        if _limit(conn, job, changes, staged=stand.staged):
            for stage in of(conn, job) if stand.staged else ():
                _limit(conn, stage.id, changes, staged=False)
            _note(conn, job, by, "limit", changes)


def _limit(conn: Conn, job: int, changes: Mapping[str, Any], *, staged: bool) -> bool:
    """Whether that changed anything. Of a job with stages it is said, and but for `keep` holds for its stages only."""
    known = _limits(conn, job)
    limits = Limits.of({**known, **changes})
    words = limits.words()
    columns = (Limits(keep=limits.keep) if staged else limits).columns()
    if words != known:
        conn.execute(statement("limit_job"), {"job": job, "limits": Jsonb(words), **columns})
    return bool(words != known)


def _limits(conn: Conn, job: int) -> dict[str, Any]:
    row = conn.execute(statement("job_limits"), (job,)).fetchone()
    if row is None:  # it left a moment ago
        raise NoSuchJob(f"there is no job {job}")
    return dict(row[0])


def delete(conn: Conn, job: int, by: By) -> None:
    """A finished job is gone, for everybody and at once; its rows are cleared away by the sweep, or by `leaving.clear`.

    Its history goes with it, so who deleted it is in the log. Raises NoSuchJob, and NotPossible while it is open.
    """
    with conn.transaction():
        stand = _stand(conn, job, by)
        if stand.parent is not None:
            raise NotPossible(
                f"job {job} is a stage of job {stand.parent}: delete that, and its stages go with it"
            )
        if not leaving.mark(conn, [job]):
            _refuse(job, _stand(conn, job, by), "it can be deleted when it is over; `cancel` ends it")
    log.info("job %d is deleted by %s, %s", job, by.who or "somebody", by.via)


def retry(conn: Conn, job: int, by: By, choice: Choice) -> int:
    """Give items that ended without success another attempt, and open a job that is over; returns how many.

    Of a job with stages: those of all stages, and the stages that were not made yet are made then; said to a stage,
    only its own. Stages that are made are not made again. Raises NoSuchJob, and NotPossible while it is being stopped.
    """
    for left in reversed(range(TRIES)):
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


def _retry(conn: Conn, job: int, by: By, choice: Choice) -> int:
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


def _retry_stages(conn: Conn, parent: int, by: By, choice: Choice, only: int | None = None) -> int:
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


def _retry_stage(conn: Conn, stage: StageRow, by: By, choice: Choice, *, paused: bool) -> int:
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


def _goes_on(stages: Sequence[StageRow], choice: Choice) -> bool:
    """Whether stages are to be made that were not, though no item of the others is run again."""
    unmade = [stage for stage in stages if stage.unmade]
    failed = any(stage.state == "failed" for stage in unmade)
    return bool(unmade) and ("cancelled" in choice.wanted or (failed and "failed" in choice.wanted))


def _reopen_rest(conn: Conn, parent: int, stages: Sequence[StageRow], choice: Choice) -> int:
    """Open a job of stages, and what is unmade of it; a stage that was partly made goes on whole. How many items."""
    count = 0
    narrow = choice.items is not None or choice.error_type is not None
    chosen = WHOLE if narrow else Choice(("cancelled", *choice.wanted))
    for stage in stages:
        if stage.unmade and stage.consumed:
            more, changes = _reopened(conn, stage.id, chosen)
            _reopen(conn, stage.id, changes)
            count += more
    conn.execute(statement("reopen_stages"), (parent,))
    conn.execute(statement("reopen_parent"), (parent,))
    writes.close_jobs(conn)  # a stage that was stopped, and of which nothing runs again
    return count


def _reopen(conn: Conn, job: int, changes: Mapping[str, Any]) -> None:
    if not conn.execute(statement("reopen_job"), changes).fetchone():
        raise Overtaken(f"job {job} was opened or closed meanwhile")


def _lock_items(conn: Conn, jobs: Sequence[int], over: Sequence[int], choice: Choice) -> None:
    """Lock what a retry may move of these jobs, some of which are over, before it locks a job."""
    parameters = {**_parameters(choice), "jobs": list(jobs), "over": list(over), "whole": choice.whole}
    conn.execute(statement("lock_retried"), parameters, prepare=False)  # see _ended


def _retried(conn: Conn, job: int, choice: Choice, *, held: bool = True) -> tuple[int, dict[str, Any]]:
    """Retry what ended of an open job; how many, and what the job's row gains and loses. `held`: see `_lock_items`."""
    ended, changes = _ended(conn, job, choice, held=held)
    return ended, {**changes, "over": False, "whole": False, "rest": 0}


def _reopened(conn: Conn, job: int, choice: Choice) -> tuple[int, dict[str, Any]]:
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
    below = watermark if choice.whole else EVERY
    sent = conn.execute(statement("send_rest"), {"job": job, "below": below}).rowcount
    ended, changes = _ended(conn, job, choice, held=True)
    changes["redo"] += sent
    changes["published"] += published
    count = ended - changes["cancelled"] + (cancelled if choice.whole else changes["cancelled"] + sent)
    return count, {**changes, "over": True, "whole": choice.whole, "rest": rest}


def _ended(conn: Conn, job: int, choice: Choice, *, held: bool) -> tuple[int, dict[str, Any]]:
    parameters = {**_parameters(choice), "job": job, "error_type": choice.error_type, "held": held}
    with conn.cursor(row_factory=dict_row) as cursor:
        # Planned for these items: a plan that is kept for any goes through all of their numbers for each that failed.
        changes = next(cursor.execute(statement("retry_ended"), parameters, prepare=False))
    ended = changes["failed"] + changes["skipped"] + changes["cancelled"]
    return ended, {"job": job, "window": 2 * writes.WINDOW, **changes}


def _parameters(choice: Choice) -> dict[str, Any]:
    return {"states": list(choice.wanted), "items": None if choice.items is None else list(choice.items)}


def _given(choice: Choice) -> dict[str, Any]:
    return {name: value for name, value in asdict(choice).items() if value is not None}


def _whole(conn: Conn, job: int, by: By) -> list[StageRow]:
    """The stages that a job has, locked; raises NoSuchJob, and NotPossible for a job that is a stage itself."""
    stand = _stand(conn, job, by)
    if stand.parent is not None:
        raise NotPossible(f"job {job} is a stage of job {stand.parent}: say it to that")
    if not stand.staged:
        return []
    lock(conn, job)
    return of(conn, job)


def _stand(conn: Conn, job: int, by: By) -> _Stand:
    row = conn.execute(statement("job_stand"), {"job": job, "tenant": by.tenant}).fetchone()
    if row is None:
        raise NoSuchJob(f"there is no job {job}")
    return _Stand(*row)


def _refuse(job: int, stand: _Stand, why: str) -> NoReturn:
    state = "being stopped" if stand.stopping else stand.state
    raise NotPossible(f"job {job} is {state}: {why}")


def _note(conn: Conn, job: int, by: By, action: str, detail: Mapping[str, Any] | None = None) -> None:
    writes.note_action(conn, job, action, who=by.who, via=by.via, detail=dict(detail or {}))
