"""The common parts of actions on a job: the requester, the job's status, a refusal, a line in the history."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import psycopg
from psycopg.errors import LockNotAvailable
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from callboard.sql import timings
from callboard.sql.errors import UserFunctionWaits, refusal
from callboard.sql.json_values import is_storable
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn, transaction
from callboard.sql.statements import execute, fetch_one, fetch_value
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes.outcomes import longest_lock

#: The most bytes of a job's metadata: each list of jobs and each event contains it.
METADATA_LIMIT_BYTES = 262_144
#: NUL as JSON writes it.
NUL_PATTERN = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class NoSuchJob(LookupError):
    """There is no job with this id."""


class NotPossible(RuntimeError):
    """The job's state does not allow the action; the text says which state it is in, and what to do."""


class RowLocked(NotPossible):
    """Another transaction has locked a row of the job; the action may be possible when that has ended."""


class NoSuchItem(LookupError):
    """The job has no item with this number."""


@contextmanager
def action_transaction(conn: Conn) -> Iterator[None]:
    """Run a block as an action on jobs: in a transaction, or in a savepoint of the open one.

    Raises RowLocked when another transaction has locked one of their rows for `ACTION_LOCK_WAIT_SECONDS`, and
    NotPossible when a user's function refuses the write, for example in a trigger on one of our tables.
    """
    try:
        with transaction(conn, timings.ACTION_LOCK_WAIT_SECONDS):
            yield
    except LockNotAvailable as error:
        if isinstance(error, UserFunctionWaits) or conn.info.transaction_status != TransactionStatus.IDLE:
            raise  # the outer action reports it
        holder = longest_lock(conn)
        raise RowLocked(f"a row of the job is locked, perhaps by {holder}: try again when that has ended") from None
    except psycopg.Error as error:
        text = refusal(error)
        if text is None:
            raise
        raise NotPossible(text) from error


@dataclass(frozen=True, slots=True)
class Requester:
    """The author of an action. `via`: cli, http, python or worker; `who`: a name, or empty; `tenant`: the only tenant
    whose jobs the action may affect (None: any); `address`: the address of an HTTP client.
    """

    via: str
    who: str = ""
    tenant: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The status of a job: its state, its items, those that ended without success, and its relation to stages."""

    state: str
    stopping: bool
    failed: int
    skipped: int
    cancelled: int
    total: int
    has_stages: bool
    parent: int | None

    @property
    def over(self) -> bool:
        """Whether its state is final."""
        return self.state in JOB_FINAL

    @property
    def ends(self) -> bool:
        """Whether it is over, or is being stopped."""
        return self.over or self.stopping


def job_status(conn: Conn, job: int, by: Requester) -> JobStatus:
    """Read the status of a job. Raises NoSuchJob, also for a job of another tenant than the requester's."""
    status = fetch_one(conn, JobStatus, "job_status", job=job, tenant=by.tenant)
    if status is None:
        raise NoSuchJob(f"there is no job {job}")
    return status


def refuse(job: int, status: JobStatus, why: str) -> NoReturn:
    """Raise NotPossible, with the job's state in the text."""
    state = "being stopped" if status.stopping else status.state
    raise NotPossible(f"job {job} is {state}: {why}")


def note_action(conn: Conn, job: int, by: Requester, action: str, detail: Mapping[str, Any] | None = None) -> None:
    """Add an action to a job's history, in the transaction of the action."""
    noted = Jsonb(dict(detail or {}))
    execute(conn, "note_action", job=job, action=action, who=by.who, via=by.via, address=by.address, detail=noted)


def check_text(name: str, given: object, most: int) -> None:
    """Raise ValueError for anything but None or a text that a row can store, of at most `most` characters."""
    if given is None:
        return
    if not isinstance(given, str) or len(given) > most:
        raise ValueError(f"{name} must be a text of at most {most} characters, not {given!r:.100}")
    if not is_storable(given):
        raise ValueError(
            f"{name} must not contain a NUL character or half of a surrogate pair: the database can't store them"
        )


def check_name(name: str, given: object, most: int) -> None:
    """Like `check_text`; a text must not be blank, either."""
    check_text(name, given, most)
    if isinstance(given, str) and not given.strip():
        raise ValueError(f"{name} must not be empty: leave it out, or give a text")


def check_flag(name: str, given: object) -> None:
    """Raise ValueError for anything but True and False: a text like "false" would count as True."""
    if not isinstance(given, bool):
        raise ValueError(f"{name} must be True or False, not {given!r:.100}")  # noqa: TRY004 — as for all invalid values


def listed(name: str, given: object) -> tuple[Any, ...] | None:
    """Return the values of an option that takes several; None for None. Raises ValueError for anything but a list."""
    if given is None:
        return None
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{name} must be a list, not {given!r:.100}")  # noqa: TRY004 — as for all invalid values
    return tuple(given)


def at_database_time(conn: Conn, limits: Limits) -> Limits:
    """Return limits with spans replaced by times, counted from the database's time. Raises ValueError."""
    if not limits.has_spans:
        return limits
    return limits.counted_from(fetch_value(conn, "database_time"))


def json_object(name: str, given: object) -> Jsonb:
    """Return a dict as a parameter for the database. Raises ValueError for anything that a row can't store as JSON."""
    try:
        text = json.dumps(given, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be a dict that JSON can hold: {error}") from None
    if not isinstance(given, dict) or not is_storable(text) or NUL_PATTERN.search(text):
        raise ValueError(
            f"{name} must be a dict of values that the database can hold, without NUL characters and halves of "
            f"surrogate pairs; not {given!r:.100}"
        )
    if len(text.encode()) > METADATA_LIMIT_BYTES:
        raise ValueError(f"{name} has {len(text.encode()):,} bytes as JSON, and {METADATA_LIMIT_BYTES:,} are allowed")
    return Jsonb(given, dumps=lambda _: text)
