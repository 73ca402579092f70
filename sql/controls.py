"""What is said to a job: cancel, pause, resume, limit, retry, delete. Each in one transaction, with who said it;
saying it again changes nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from callboard.sql import leaving, writes
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn
from callboard.sql.statements import statement
from callboard.sql.states import JOB_FINAL, RETRIABLE

log = logging.getLogger("callboard.control")

#: How often a retry is tried that others got in the way of.
TRIES = 5
#: Above every item.
EVERY = 2**31 - 1


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
    numbers, of this type of error (with its
    module or without). Raises ValueError for a state that can't be retried.
    """

    states: Sequence[str] | None = None
    items: Sequence[int] | None = None
    error_type: str | None = None

    def __post_init__(self) -> None:
        strange = sorted(set(self.wanted) - set(RETRIABLE))
        if strange:
            raise ValueError(f"items can't be retried that are {strange[0]}: only {', '.join(RETRIABLE)}")
        if self.error_type is not None and self.wanted != ("failed",):
            raise ValueError("only failed items have a type of error")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The states."""
        if self.states:
            return tuple(self.states)
        return ("failed",) if self.items is None or self.error_type is not None else RETRIABLE

    @property
    def whole(self) -> bool:
        """Whether it takes all that was cancelled."""
        return "cancelled" in self.wanted and self.items is None and self.error_type is None


@dataclass(frozen=True, slots=True)
class _Stand:
    state: str
    stopping: bool
    failed: int
    skipped: int
    cancelled: int

    @property
    def over(self) -> bool:
        return self.state in JOB_FINAL

    @property
    def ends(self) -> bool:
        return self.over or self.stopping


def cancel(conn: Conn, job: int, by: By, *, reason: str | None = None) -> None:
    """Nothing of the job starts any more; it is `cancelled` when the last item in hand has ended.

    Raises NoSuchJob, and NotPossible when it ended otherwise.
    """
    with conn.transaction():
        _stand(conn, job, by)
        told = {"job": job, "state": "cancelled", "reason": reason}
        if conn.execute(statement("stop_job"), told).fetchone():
            _note(conn, job, by, "cancel", {"reason": reason} if reason else {})
        elif (stand := _stand(conn, job, by)).state in ("completed", "failed"):
            _refuse(job, stand, "there is nothing left to cancel")
    writes.close_stopped(conn)


def pause(conn: Conn, job: int, by: By) -> None:
    """Nothing of the job starts until it is resumed. Raises NoSuchJob, and NotPossible when it is over."""
    with conn.transaction():
        _stand(conn, job, by)
        if conn.execute(statement("pause_job"), (job,)).fetchone():
            _note(conn, job, by, "pause")
        elif (stand := _stand(conn, job, by)).ends:
            _refuse(job, stand, "there is nothing left to pause")


def resume(conn: Conn, job: int, by: By) -> None:
    """A paused job goes on. Raises NoSuchJob, and NotPossible when it is over."""
    with conn.transaction():
        _stand(conn, job, by)
        if conn.execute(statement("resume_job"), (job,)).fetchone():
            _note(conn, job, by, "resume")
        elif (stand := _stand(conn, job, by)).ends:
            _refuse(job, stand, "only what is paused is resumed; `retry` gives its items another attempt")


def limit(conn: Conn, job: int, by: By, changes: Mapping[str, Any]) -> None:
    """Change what the job may do at most (see `Limits`); None takes a limit away, what is not named stays.

    Of a job that is over they hold when it is opened again. Raises NoSuchJob, and ValueError for what makes no sense.
    """
    strange = sorted(set(changes) - {field.name for field in fields(Limits)})
    if strange:
        raise ValueError(f"there is no limit {strange[0]!r}")
    with conn.transaction():
        _stand(conn, job, by)
        known = _limits(conn, job)
        limits = Limits.of({**known, **changes})
        words = limits.words()
        if words != known:
            conn.execute(statement("limit_job"), {"job": job, "limits": Jsonb(words), **limits.columns()})
            _note(conn, job, by, "limit", {name: words.get(name) for name in changes})


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
        _stand(conn, job, by)
        if not leaving.mark(conn, job):
            _refuse(job, _stand(conn, job, by), "it can be deleted when it is over; `cancel` ends it")
    log.info("job %d is deleted by %s, %s", job, by.who or "somebody", by.via)


def retry(conn: Conn, job: int, by: By, choice: Choice) -> int:
    """Give items that ended without success another attempt, and open a job that is over; returns how many.

    Raises NoSuchJob, and NotPossible while it is being stopped.
    """
    for left in reversed(range(TRIES)):
        try:
            return _retry(conn, job, by, choice)
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
        count, changes = _reopened(conn, job, choice) if stand.over else _retried(conn, job, choice)
        if not count:
            raise psycopg.Rollback  # nobody chose what was moved aside
        if not conn.execute(statement("reopen_job"), changes).fetchone():
            raise Overtaken(f"job {job} was opened or closed meanwhile")
        _note(conn, job, by, "retry", {**_given(choice), "count": count})
    return count


def _retried(conn: Conn, job: int, choice: Choice) -> tuple[int, dict[str, Any]]:
    """Retry what ended of an open job; how many, and what the job's row gains and loses."""
    ended, changes = _ended(conn, job, choice)
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
    (published,) = next(conn.execute(statement("clear_outbox"), (job,)))
    below = watermark if choice.whole else EVERY
    sent = conn.execute(statement("send_rest"), {"job": job, "below": below}).rowcount
    ended, changes = _ended(conn, job, choice)
    changes["redo"] += sent
    changes["published"] += published
    count = ended - changes["cancelled"] + (cancelled if choice.whole else changes["cancelled"] + sent)
    return count, {**changes, "over": True, "whole": choice.whole, "rest": rest}


def _ended(conn: Conn, job: int, choice: Choice) -> tuple[int, dict[str, Any]]:
    parameters = {
        "job": job,
        "states": list(choice.wanted),
        "items": None if choice.items is None else list(choice.items),
        "error_type": choice.error_type,
    }
    with conn.cursor(row_factory=dict_row) as cursor:
        changes = next(cursor.execute(statement("retry_ended"), parameters))
    ended = changes["failed"] + changes["skipped"] + changes["cancelled"]
    return ended, {"job": job, "window": 2 * writes.WINDOW, **changes}


def _given(choice: Choice) -> dict[str, Any]:
    return {name: value for name, value in asdict(choice).items() if value is not None}


def _stand(conn: Conn, job: int, by: By) -> _Stand:
    row = conn.execute(statement("job_stand"), {"job": job, "tenant": by.tenant}).fetchone()
    if row is None:
        raise NoSuchJob(f"there is no job {job}")
    return _Stand(*row)


def _refuse(job: int, stand: _Stand, why: str) -> NoReturn:
    state = "being stopped" if stand.stopping else stand.state
    raise NotPossible(f"job {job} is {state}: {why}")


def _note(conn: Conn, job: int, by: By, action: str, detail: dict[str, Any] | None = None) -> None:
    conn.execute(
        statement("note_action"),
        {"job": job, "action": action, "who": by.who, "via": by.via, "detail": Jsonb(detail or {})},
    )
