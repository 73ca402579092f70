"""What is said to a job: cancel, pause, resume, limit, retry, delete. Each in one transaction, with who said it;
saying it again changes nothing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from psycopg.types.json import Jsonb

from callboard.sql.limits import Limits
from callboard.sql.pool import Conn
from callboard.sql.rows import StageRow
from callboard.sql.statements import statement
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import retention
from callboard.sql.writes.jobs import close_stopped, note_action
from callboard.sql.writes.stages import follow, lock, of, stop

log = logging.getLogger("callboard.control")

#: Characters of a reason, and of the name of an error's type.
LONGEST_REASON, LONGEST_TYPE = 500, 1_000


class NoSuchJob(LookupError):
    """There is no job with this id."""


class NotPossible(RuntimeError):
    """The job is not in a state in which this can be done to it; the message says what it is, and what to do."""


@dataclass(frozen=True, slots=True)
class Requester:
    """Who acts, as far as it is known, from where (`cli`, `http`, `python`), and as which tenant (None: any)."""

    via: str
    who: str = ""
    tenant: str | None = None


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


def cancel(conn: Conn, job: int, by: Requester, *, reason: str | None = None) -> None:
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
    close_stopped(conn)
    follow(conn)


def pause(conn: Conn, job: int, by: Requester) -> None:
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


def resume(conn: Conn, job: int, by: Requester) -> None:
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


def limit(conn: Conn, job: int, by: Requester, changes: Mapping[str, Any]) -> None:
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


def delete(conn: Conn, job: int, by: Requester) -> None:
    """A finished job is gone, for everybody and at once; its rows are cleared away by the sweep, or by `leaving.clear`.

    Its history goes with it, so who deleted it is in the log. Raises NoSuchJob, and NotPossible while it is open.
    """
    with conn.transaction():
        stand = _stand(conn, job, by)
        if stand.parent is not None:
            raise NotPossible(
                f"job {job} is a stage of job {stand.parent}: delete that, and its stages go with it"
            )
        if not retention.mark(conn, [job]):
            _refuse(job, _stand(conn, job, by), "it can be deleted when it is over; `cancel` ends it")
    log.info("job %d is deleted by %s, %s", job, by.who or "somebody", by.via)


def _whole(conn: Conn, job: int, by: Requester) -> list[StageRow]:
    """The stages that a job has, locked; raises NoSuchJob, and NotPossible for a job that is a stage itself."""
    stand = _stand(conn, job, by)
    if stand.parent is not None:
        raise NotPossible(f"job {job} is a stage of job {stand.parent}: say it to that")
    if not stand.staged:
        return []
    lock(conn, job)
    return of(conn, job)


def _stand(conn: Conn, job: int, by: Requester) -> _Stand:
    row = conn.execute(statement("job_stand"), {"job": job, "tenant": by.tenant}).fetchone()
    if row is None:
        raise NoSuchJob(f"there is no job {job}")
    return _Stand(*row)


def _refuse(job: int, stand: _Stand, why: str) -> NoReturn:
    state = "being stopped" if stand.stopping else stand.state
    raise NotPossible(f"job {job} is {state}: {why}")


def _note(conn: Conn, job: int, by: Requester, action: str, detail: Mapping[str, Any] | None = None) -> None:
    note_action(conn, job, action, who=by.who, via=by.via, detail=dict(detail or {}))
