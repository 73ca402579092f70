"""Functions that an actor calls while it runs an item: skip it, report a step, save rows, read the current item."""

import json
import logging
import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dramatiq
from dramatiq.middleware import SkipMessage

from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.message.failure import clean, place
from callboard.sql.limits import check_seconds
from callboard.sql.rows import Progress
from callboard.sql.writes import saves

log = logging.getLogger("callboard")

#: Maximum characters of a step that are stored.
STEP_CHARACTERS = 500
#: Maximum number of statements that an item may save, and their bytes: they run in one transaction.
SAVES_LIMIT, SAVES_LIMIT_BYTES = 1_000, 16 * 2**20


class Skip(SkipMessage):
    """Raise this in an actor to end its item as `skipped`, with a reason. The item has not failed, and is not retried.

    raise callboard.Skip("the customer has left")
    """


class NotInAnItem(RuntimeError):
    """`current` was called outside a tracked item, or `save` after the end of the item."""


@dataclass(frozen=True, slots=True)
class Current:
    """The running item: the id of its `job`, its number `item` in the job from 0, and the `attempt` from 1."""

    job: int
    item: int
    attempt: int
    _attempt: Attempt

    @property
    def tenant(self) -> str:
        """The tenant of the job; empty: none. A worker reads `tenant`, `key` and `metadata` once per job."""
        return self._attempt.read_facts(self.job).tenant

    @property
    def key(self) -> str | None:
        """The key of the job, or None."""
        return self._attempt.read_facts(self.job).key

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of the metadata of the job, as it was when this worker first read it."""
        found: dict[str, Any] = json.loads(self._attempt.read_facts(self.job).metadata)
        return found

    @property
    def cancelled(self) -> bool:
        """Whether the job was stopped since the item started, known within about a second. A long item can then end
        early.
        """
        return self._attempt.cancelled


def current() -> Current:
    """Return the item that this actor runs. Raises NotInAnItem outside a tracked actor."""
    attempt = _attempt()
    if attempt is None:
        raise NotInAnItem(
            "current() was called outside a tracked actor: call it while an actor runs an item; in a thread of that "
            "actor, run the function with callboard.in_context"
        )
    return Current(attempt.job, attempt.item, attempt.number, attempt)


class LogContext(logging.Filter):
    """Adds the running item to each log line; add this filter to a handler.

    handler.addFilter(callboard.LogContext())

    The line begins with ``[item 12/3, attempt 1, worker 5]``: 12 is the job, 3 the item in it. With ``prefix=False``
    this handler does not change the line, even if another handler adds the prefix. In both cases the record has the
    attributes `job`, `item`, `attempt` and `worker` for a format of your own; they are None outside an item. The
    attribute `trace` is the id of OpenTelemetry's trace, or None.
    """

    def __init__(self, *, prefix: bool = True) -> None:
        super().__init__()
        self._prefix = prefix

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes; return True, so that every record passes."""
        if not getattr(record, "in_context", False):  # not yet set by another handler, maybe in another thread
            attempt, record.in_context = current_attempt.get(), True
            found = (None,) * 4 if attempt is None else (*attempt.key, attempt.number, attempt.worker)
            record.job, record.item, record.attempt, record.worker = found
            record.trace = _trace_id()
        self._set_prefix(record)
        return True

    def _set_prefix(self, record: Any) -> None:
        """Add or remove the prefix for this handler, because all handlers get the same record."""
        if record.job is None:
            return
        where = f"[item {record.job}/{record.item}, attempt {record.attempt}, worker {record.worker}] "
        begun = isinstance(record.msg, str) and record.msg.startswith(where)
        if self._prefix and not begun:
            record.msg = f"{where}{record.msg}"
        elif begun and not self._prefix:
            record.msg = record.msg.removeprefix(where)


def _trace_id() -> str | None:
    """Return the id of the current trace, or None. Imports nothing: an app with traces has imported OpenTelemetry."""
    api = sys.modules.get("opentelemetry.trace")
    found = None if api is None else api.get_current_span().get_span_context()
    return f"{found.trace_id:032x}" if found is not None and found.is_valid else None


def step(text: str) -> None:
    """Report the current step of the item, at most 500 characters; shown within a second on the item and its job.

    A call is cheap: only the latest text is written, at most ten times a second. Does nothing outside a tracked actor,
    and never raises.
    """
    attempt = _attempt()
    if attempt is None:
        return
    try:
        attempt.step = clean(str(text), STEP_CHARACTERS)
    except (Exception, SystemExit) as error:  # noqa: BLE001 — a broken __str__ must not fail the work
        _log_nonsense(attempt, f"step() got a value without a text: {_shown(error)}")


def progress(done: float, total: float | None = None) -> None:
    """Report the progress of the item: `done` of `total` in any unit, or of an unknown total; shown within a second.

    As cheap as `step`. `total` may be an estimate: a larger `done` counts as complete. A new attempt starts without
    progress. Does nothing outside a tracked actor, and never raises: a `total` that is not a number above 0 counts as
    unknown, and a `done` that is not a number from 0 is ignored. The log says so once per actor.
    """
    attempt = _attempt()
    if attempt is None:
        return
    part, whole = _number(done), _number(total)
    if part is None or (whole is None and total is not None):
        _log_nonsense(attempt, f"progress({_shown(done)}, {_shown(total)}): both must be numbers from 0")
    if part is not None:
        attempt.progress = Progress(min(part, whole), whole) if whole else Progress(part, None)


def _number(given: Any) -> float | None:
    """Return a finite number from 0; None for anything else."""
    try:
        number = float(given)
    except (Exception, SystemExit):  # noqa: BLE001 — reporting progress must not fail the work
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _shown(given: Any) -> str:
    try:
        return reprlib.repr(given)
    except SystemExit:  # by its own code
        return object.__repr__(given)


#: The actors whose wrong values were logged.
_logged: set[str] = set()


def _log_nonsense(attempt: Attempt, what: str) -> None:
    if attempt.actor not in _logged:
        _logged.add(attempt.actor)
        log.warning("actor %s: %s; ignored, and not logged again", attempt.actor, what)


def save(sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, item: int | None = None) -> None:
    """Run a statement of your own in the transaction that records the item as succeeded: both commit, or neither does.

    If the item succeeds, the statement takes effect exactly once, even after crashes, redeliveries and retries;
    otherwise it has no effect. It is one INSERT, UPDATE, DELETE, MERGE, SELECT, WITH or CALL on tables in Callboard's
    database, with parameters as psycopg takes them. The statements run in the order of the calls, after the actor has
    returned. A statement that fails makes the item `failed`, with its error. Does nothing outside a tracked actor.

    `item`: in a batch, the position in the list of the item to which the statement belongs. Raises ValueError for more
    than 1,000 statements of an item, or 16 MiB; and psycopg's errors for values that PostgreSQL can't represent.
    """
    attempt = current_attempt.get()
    if attempt is None:
        return
    if attempt.batch is not None:
        if item is None:
            raise TypeError("in a batch, save() needs item=…, the position of the item in the list")
        if type(item) is not int or not 0 <= item < len(attempt.batch):
            raise ValueError(f"item must be a position in the list of {len(attempt.batch)} items, not {item!r:.100}")
        attempt = attempt.batch[item]
    elif item is not None:
        raise TypeError("save() takes item=… only in a batch")
    caller = sys._getframe(1)  # noqa: SLF001 — documented, and `inspect` reads source files
    statement, size = saves.frozen(sql, params, place(caller.f_code, caller.f_lineno))
    if not attempt.add_save(statement, size, most=SAVES_LIMIT, limit=SAVES_LIMIT_BYTES):
        raise NotInAnItem("save() was called when its item had ended: call it before the actor returns")


def hold(seconds: float, reason: str = "") -> None:
    """Hold back the lane of the running item, or its whole job if it has no lanes, for example because a remote API
    asks to wait: no more of its items start for some seconds. While nothing else of the job moves, its `stalled` says
    so.

    Messages of held items that a worker receives meanwhile go back to the database. Running items continue, so raise
    `Postpone` to stop this one. `hold` returns at once, and does nothing outside a tracked actor. Raises ValueError if
    `seconds` is not a number from 0.
    """
    check_seconds("hold()", seconds)
    if (attempt := _attempt()) is not None:
        attempt.hold_back(attempt.key, float(seconds), clean(str(reason), STEP_CHARACTERS))


def send_now(message: Any) -> Any:
    """Send a message at once, whatever the outcome of the running item; return the message as it was sent.

    In contrast, a message that an item of a job sends with `.send()` is published only when the item succeeds. The
    message belongs to today's standing job of its actor, or to the job of the enclosing `callboard.job` block.
    """
    if not isinstance(message, dramatiq.Message):
        raise TypeError(f"send_now() takes a message from actor.message(…), not {message!r:.100}")
    token = current_attempt.set(None)
    try:
        return dramatiq.get_broker().enqueue(message)
    finally:
        current_attempt.reset(token)


def _attempt() -> Attempt | None:
    """Return the attempt that runs in this context, or None."""
    attempt = current_attempt.get()
    return None if attempt is None or attempt.ended else attempt
