"""Statements of the user's own, which run in the transaction of their item's outcome."""

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, LiteralString, NamedTuple, TypeAlias, cast

import psycopg
from psycopg.adapt import Dumper, PyFormat, Transformer
from psycopg.pq import Format

from callboard.sql.errors import DATA_ERRORS, TRANSIENT, is_connection_lost
from callboard.sql.pool import Conn, PlainConnection, drop_detail
from callboard.sql.rows import Event, Save, Saves
from callboard.sql.statements import execute, lists

#: Seconds of such statements in one transaction, after which no other item's are begun.
TRANSACTION_SECONDS = 1.0
#: Seconds, and tries at least, after which an item fails that a lock or a slow server keeps from saving.
BUSY_SECONDS, BUSY_TRIES = 60.0, 5
#: Items whose statements are sent together, at most; and one alone after so many seconds for those before.
MAX_PIPED, PIPED_SECONDS = 64, 0.05
#: How often the connection may break in an item's statements before they are taken to break it.
MAX_BREAKS = 3

# One round trip each. A statement waits for a lock for 1 s, and takes 5 s, at most. Constraints that are checked late
# are checked with the item that breaks them.
_BEGIN: LiteralString = (
    "SAVEPOINT saves; SET CONSTRAINTS ALL DEFERRED; SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'"
)
_END = "SET CONSTRAINTS ALL IMMEDIATE; %s; RELEASE SAVEPOINT saves"
_UNDO: LiteralString = "ROLLBACK TO SAVEPOINT saves; RELEASE SAVEPOINT saves; SELECT pg_advisory_unlock_all()"

#: The words that a statement may begin with. None that ends the transaction is among them.
_ALLOWED = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:INSERT|UPDATE|DELETE|MERGE|WITH|(?P<calls>SELECT|CALL))\b",
    re.IGNORECASE | re.DOTALL,
)

#: (job, item).
Key: TypeAlias = tuple[int, int]


class Unsaved(NamedTuple):
    """The items of which nothing is saved: those `refused`, with the statement and the error; and those to be tried
    `later`, of which the `busy` ones have met with an error that may pass.
    """

    refused: dict[Key, tuple[Save, Exception]]
    later: set[Key]
    busy: dict[Key, Exception]


class BrokenConnection(RuntimeError):
    """The connection broke each time that an item's statements ran, in a transaction of its own the second time on."""


def lock_succeeding(conn: Conn, events: Sequence[Event]) -> set[Key]:
    """Lock the items of these events; return those that `outcomes.record` will move in this transaction."""
    ordered = lists("job item attempt", sorted((e.job, e.item, e.attempt) for e in events))
    return {(job, item) for job, item in execute(conn, "lock_succeeding", **ordered)}


def run(conn: Conn, events: Sequence[Event]) -> Unsaved:
    """Run what these events save, in the open transaction. An item of which a statement fails saves nothing, and the
    others all. Raises psycopg.Error when the connection breaks.

    After a statement that found a lock or took too long no other of its job runs in this transaction. What a statement
    leaves in the session (settings, a role, locks, temporary tables) is undone after each group, and after each item
    that calls code. Items in whose statements the connection broke run later, one in a transaction.
    """
    unsaved = Unsaved({}, set(), {})
    until = time.monotonic() + TRANSACTION_SECONDS
    for event in events:
        if len(breaks := _saves(event).breaks) >= MAX_BREAKS:
            error = BrokenConnection(f"the connection broke each of the {MAX_BREAKS} times that it ran")
            unsaved.refused[_key(event)] = breaks[-1], error
    whole = [event for event in events if _key(event) not in unsaved.refused]
    now = [event for event in whole if not _saves(event).breaks] or whole[:1]
    unsaved.later.update(_key(event) for event in whole if event not in now)
    now.sort(key=lambda e: _saves(e).busy_since or 0.0)
    groups = deque(list(group) for _, group in groupby(now, key=_group))
    while groups:
        group = groups.popleft()
        late, busy = time.monotonic() > until, {job for job, _ in unsaved.busy}
        unsaved.later.update(_key(e) for e in group if late or e.job in busy)
        group = [e for e in group if not late and e.job not in busy]
        if not group:
            continue
        start, stop, failed = _save(conn, group, until)
        middle = (start + stop) // 2
        if failed is None:
            groups.appendleft(group[stop:])
        elif stop - start > 1:
            groups.extendleft((group[stop:], group[middle:stop], group[start:middle], group[:start]))
        else:
            _note(group[start], failed, unsaved)
            groups.extendleft((group[stop:], group[:start]))
    return unsaved


def _key(event: Event) -> Key:
    return event.job, event.item


def _saves(event: Event) -> Saves:
    if event.saves is None:
        raise ValueError(f"item {event.job}/{event.item} saves nothing")
    return event.saves


def _group(event: Event) -> Key | None:
    """Return what the next item must have in common with this one to be saved in one group."""
    return _key(event) if any(save.calls for save in _saves(event).statements) else None


class _Failed(NamedTuple):
    """The statement that failed, and why."""

    save: Save
    error: Exception


def _save(conn: Conn, group: Sequence[Event], until: float) -> tuple[int, int, _Failed | None]:
    """Run what these events save, as far as the time `until` goes (monotonic), one of them at least; all or nothing.

    Returns (0, how many could, None); or of which events one has failed, from the first to before the second, and what.
    """
    done, size = 0, 1
    conn.execute(_BEGIN, prepare=False)
    try:
        while done < len(group) and (not done or time.monotonic() < until):
            began = time.monotonic()
            events = group[done : done + size]
            place, failed = _send(conn, events)
            if failed is not None:
                return _undo(conn, group[: done + len(events)], done + place, done + place + 1, failed)
            done += len(events)
            size = min(2 * size, MAX_PIPED) if time.monotonic() - began < PIPED_SECONDS else 1
        conn.execute(_END % cast("PlainConnection", conn).restore_session, prepare=False)
    except psycopg.Error as error:
        return _undo(conn, group[:done], 0, done, _Failed(_saves(group[done - 1]).statements[-1], error))
    return 0, done, None


def _undo(conn: Conn, ran: Sequence[Event], start: int, stop: int, failed: _Failed) -> tuple[int, int, _Failed]:
    if conn.closed or is_connection_lost(failed.error):
        for event in ran:
            _saves(event).breaks.append(failed.save)
        raise failed.error
    conn.execute(_UNDO, prepare=False)
    drop_detail(failed.error)
    return start, stop, failed


#: The place of an event, a statement of it, and the cursor that runs that.
_Sent: TypeAlias = tuple[int, Save, psycopg.Cursor[Any]]


def _send(conn: Conn, events: Sequence[Event]) -> tuple[int, _Failed | None]:
    """Run the statements of these events; return the place of the event that failed, and what did."""
    sent: list[_Sent] = []
    error = _send_all(conn, events, sent)
    if error is None:
        return 0, None
    place, save = next(((place, save) for place, save, cursor in sent if not cursor.statusmessage), sent[-1][:2])
    return place, _Failed(save, error)


def _send_all(conn: Conn, events: Sequence[Event], sent: list[_Sent]) -> Exception | None:
    """Run the statements of these events and add them to `sent`; return the first error."""
    pairs = [(place, save) for place, event in enumerate(events) for save in _saves(event).statements]
    # A broken connection may keep the answers of the statements before the one that broke it. The next time each runs
    # in a round trip of its own, so that only that one has no answer.
    size = 1 if any(_saves(event).breaks for event in events) else len(pairs)
    parts = (pairs[start : start + size] for start in range(0, len(pairs), size))
    return next(filter(None, (_send_part(conn, part, sent) for part in parts)), None)


def _send_part(conn: Conn, part: Sequence[tuple[int, Save]], sent: list[_Sent]) -> Exception | None:
    """Run these statements in one round trip and add them to `sent`; return the first error."""
    found: Exception | None = None
    try:
        with conn.pipeline():  # it also refuses two statements in one, of which the second could end the transaction
            try:
                for place, save in part:
                    sent.append((place, save, conn.cursor()))
                    sent[-1][2].execute(save.text.encode(), save.params)
            except Exception as error:  # noqa: BLE001 — raised here, psycopg would log those that follow from it
                found = error
    except psycopg.Error as error:
        if found is None or not isinstance(error, psycopg.errors.PipelineAborted):
            found = error
    return found


def _note(event: Event, failed: _Failed, unsaved: Unsaved) -> None:
    """Note an error of what an event saves: it is refused, or busy for now."""
    saves, error, now = _saves(event), failed.error, time.monotonic()
    if isinstance(error, TRANSIENT) and not isinstance(error, DATA_ERRORS):
        saves.tries += 1
        saves.busy_since = saves.busy_since or now
        if now - saves.busy_since < BUSY_SECONDS or saves.tries < BUSY_TRIES:
            unsaved.later.add(_key(event))
            unsaved.busy[_key(event)] = error
            return
    unsaved.refused[_key(event)] = failed.save, error


# The parameters of a statement are frozen when the actor calls save() ------------------------------------------------


@dataclass(slots=True, frozen=True)
class _Value:
    """A value as psycopg sends it."""

    data: bytes
    oid: int
    format: Format


class _ValueDumper(Dumper):
    """Sends a value as it is."""

    def get_key(self, obj: _Value, format: PyFormat) -> Any:  # noqa: A002 — psycopg's name
        """Return the key of its dumper: values of one type have one."""
        return self.cls, obj.oid, obj.format

    def upgrade(self, obj: _Value, format: PyFormat) -> Dumper:  # noqa: A002 — likewise
        """Return the dumper of a value's type."""
        dumper = type(self)(self.cls)
        dumper.oid, dumper.format = obj.oid, obj.format
        return dumper

    def dump(self, obj: _Value) -> bytes:
        """Return the value."""
        return obj.data


psycopg.adapters.register_dumper(_Value, _ValueDumper)


def frozen(text: str, params: Sequence[Any] | Mapping[str, Any] | None, place: str) -> tuple[Save, int]:
    """Return a statement with its parameters as they are now, and its size in bytes.

    Raises ValueError for what is no statement to save, TypeError for other parameters, psycopg.Error for a value that
    has no form in PostgreSQL.
    """
    if not isinstance(text, str):
        raise TypeError(f"save() takes its statement as a text, not {text!r:.80}")
    found = _ALLOWED.match(text)
    if not found:
        raise ValueError(
            f"save() takes one INSERT, UPDATE, DELETE, MERGE, SELECT, WITH or CALL statement, not {text!r:.80}"
        )
    size = len(text.encode())
    calls = found["calls"] is not None or "set_config" in text.lower()
    if params is None:
        return Save(text, None, place, calls), size
    if isinstance(params, str | bytes) or not isinstance(params, Sequence | Mapping):
        raise TypeError(f"the parameters of save() are a tuple, a list or a dict, not {type(params).__name__}")
    given = list(params.values() if isinstance(params, Mapping) else params)
    transformer = Transformer()
    sent = transformer.dump_sequence(given, [PyFormat.AUTO] * len(given))
    values = [
        None if data is None else _Value(bytes(data), oid, format_)
        for data, oid, format_ in zip(sent, transformer.types or (), transformer.formats or (), strict=True)
    ]
    size += sum(len(value.data) for value in values if value is not None)
    kept = dict(zip(params, values, strict=True)) if isinstance(params, Mapping) else values
    return Save(text, kept, place, calls), size
