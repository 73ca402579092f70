"""Users' own statements, which run in the transaction of their item's outcome."""

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

#: Seconds after which a transaction begins no more items' statements.
TRANSACTION_SECONDS = 1.0
#: The seconds, and the least tries, after which an item fails whose save is prevented by a lock or a slow server.
BUSY_SECONDS, BUSY_TRIES = 60.0, 5
#: The most items whose statements are sent together; after a group that took so many seconds the next item is sent
#: alone.
MAX_PIPED, PIPED_SECONDS = 64, 0.05
#: How many lost connections during an item's statements count as caused by these statements.
MAX_BREAKS = 3

# One round trip each. A statement waits for a lock for 1 s at most, and runs for 5 s at most. Deferred constraints are
# checked at the end of each group, so that the item that violates them fails.
_BEGIN: LiteralString = (
    "SAVEPOINT saves; SET CONSTRAINTS ALL DEFERRED; SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'"
)
_END = "SET CONSTRAINTS ALL IMMEDIATE; %s; RELEASE SAVEPOINT saves"
_UNDO: LiteralString = "ROLLBACK TO SAVEPOINT saves; RELEASE SAVEPOINT saves; SELECT pg_advisory_unlock_all()"

#: The keywords with which a statement may begin. None of them can end the transaction.
_ALLOWED = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:INSERT|UPDATE|DELETE|MERGE|WITH|(?P<calls>SELECT|CALL))\b",
    re.IGNORECASE | re.DOTALL,
)

#: (job, item).
Key: TypeAlias = tuple[int, int]


class Unsaved(NamedTuple):
    """The items of which nothing is saved. `refused`: {item: (statement, error)}. `later`: items to try again; among
    them `busy`: those with a transient error.
    """

    refused: dict[Key, tuple[Save, Exception]]
    later: set[Key]
    busy: dict[Key, Exception]


class BrokenConnection(RuntimeError):
    """The connection was lost each time that an item's statements ran, even alone in a transaction."""


def lock_succeeding(conn: Conn, events: Sequence[Event]) -> set[Key]:
    """Lock the items of these events; return those that `outcomes.record` will move in this transaction."""
    ordered = lists("job item attempt", sorted((e.job, e.item, e.attempt) for e in events))
    return {(job, item) for job, item in execute(conn, "lock_succeeding", **ordered)}


def run(conn: Conn, events: Sequence[Event]) -> Unsaved:
    """Run the statements that these events save, in the open transaction. If a statement of an item fails, that item
    saves nothing; the other items save all. Raises psycopg.Error when the connection is lost.

    After a statement that met a lock or took too long, no more statements of its job run in this transaction. Changes
    of the session by a statement (settings, a role, locks, temporary tables) are undone after each group, and after
    each item that calls code. Items during whose statements the connection was lost run later, each in its own
    transaction.
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
    """Return the key of a group: neighbours with equal keys are saved together. None: any item without calls."""
    return _key(event) if any(save.calls for save in _saves(event).statements) else None


class _Failed(NamedTuple):
    """The statement that failed, and its error."""

    save: Save
    error: Exception


def _save(conn: Conn, group: Sequence[Event], until: float) -> tuple[int, int, _Failed | None]:
    """Run the statements of these events in one savepoint, until the monotonic time `until`, but of one event at least.

    Returns (0, number of saved events, None); or (start, stop, failure): one of the events from `start` to before
    `stop` failed, and nothing is saved.
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


#: The index of an event, a statement of it, and the cursor that runs the statement.
_Sent: TypeAlias = tuple[int, Save, psycopg.Cursor[Any]]


def _send(conn: Conn, events: Sequence[Event]) -> tuple[int, _Failed | None]:
    """Run the statements of these events; return the index of the event that failed, and its failure, or (0, None)."""
    sent: list[_Sent] = []
    error = _send_all(conn, events, sent)
    if error is None:
        return 0, None
    place, save = next(((place, save) for place, save, cursor in sent if not cursor.statusmessage), sent[-1][:2])
    return place, _Failed(save, error)


def _send_all(conn: Conn, events: Sequence[Event], sent: list[_Sent]) -> Exception | None:
    """Run the statements of these events and add them to `sent`; return the first error."""
    pairs = [(place, save) for place, event in enumerate(events) for save in _saves(event).statements]
    # After a lost connection, answers to earlier statements may be missing, too. So the next time each statement has
    # its own round trip: then only the one that breaks the connection has no answer.
    size = 1 if any(_saves(event).breaks for event in events) else len(pairs)
    parts = (pairs[start : start + size] for start in range(0, len(pairs), size))
    return next(filter(None, (_send_part(conn, part, sent) for part in parts)), None)


def _send_part(conn: Conn, part: Sequence[tuple[int, Save]], sent: list[_Sent]) -> Exception | None:
    """Run these statements in one round trip and add them to `sent`; return the first error."""
    found: Exception | None = None
    try:
        with conn.pipeline():  # also refuses a text with two statements, of which the second could end the transaction
            try:
                for place, save in part:
                    sent.append((place, save, conn.cursor()))
                    sent[-1][2].execute(save.text.encode(), save.params)
            except Exception as error:  # noqa: BLE001 — if raised here, psycopg would log follow-up errors
                found = error
    except psycopg.Error as error:
        if found is None or not isinstance(error, psycopg.errors.PipelineAborted):
            found = error
    return found


def _note(event: Event, failed: _Failed, unsaved: Unsaved) -> None:
    """Record the failure of an event's statements: it is refused, or busy for now."""
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
    """An encoded parameter, ready to be sent."""

    data: bytes
    oid: int
    format: Format


class _ValueDumper(Dumper):
    """Sends an encoded parameter unchanged."""

    def get_key(self, obj: _Value, format: PyFormat) -> Any:  # noqa: A002 — psycopg's name
        """Return the key of its dumper: values of the same type and format share one."""
        return self.cls, obj.oid, obj.format

    def upgrade(self, obj: _Value, format: PyFormat) -> Dumper:  # noqa: A002 — psycopg's name
        """Return the dumper of a value's type."""
        dumper = type(self)(self.cls)
        dumper.oid, dumper.format = obj.oid, obj.format
        return dumper

    def dump(self, obj: _Value) -> bytes:
        """Return the encoded value."""
        return obj.data


psycopg.adapters.register_dumper(_Value, _ValueDumper)


def frozen(text: str, params: Sequence[Any] | Mapping[str, Any] | None, place: str) -> tuple[Save, int]:
    """Return a statement with its parameters as they are now, and the size of both in bytes.

    Raises ValueError for a statement that can't be saved, TypeError for invalid types of arguments, and psycopg.Error
    for a value that psycopg can't convert.
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
