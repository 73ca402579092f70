"""Reads: each function describes one query, `run` and `arun` execute it on a connection of either colour."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, LiteralString, TypeVar

from psycopg.rows import dict_row

from callboard.sql import timings
from callboard.sql.pool import AsyncConn, Conn
from callboard.sql.reads import item_view, job_view, staged_job_view
from callboard.sql.reads.item_view import Page, Rows
from callboard.sql.statements import statement

T = TypeVar("T")
#: Beyond every id.
LAST = 2**63 - 1
#: Characters of arguments, results and messages in a list, and of one item looked at alone.
CUT = 4_096
WHOLE = 1_048_576
#: Errors of a job and attempts of an item shown at most; both are bounded by nature.
MANY = 1_000


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """A statement, its parameters, and how its rows (by column name) become the answer."""

    statement: LiteralString
    parameters: Mapping[str, Any]
    result: Callable[[Rows], T]


def run(conn: Conn, query: Query[T]) -> T:
    """The answer, in a thread."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return query.result(cursor.execute(query.statement, query.parameters).fetchall())


async def arun(conn: AsyncConn, query: Query[T]) -> T:
    """The answer, in an event loop."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query.statement, query.parameters)
        return query.result(await cursor.fetchall())


def job(number: int, *, tenant: str | None = None) -> Query[dict[str, Any] | None]:
    """A job as the API describes it; None when there is none with this id (or not of this tenant)."""
    parameters = _job_parameters(number, number, limit=1, tenant=tenant)
    return Query(statement("jobs"), parameters, lambda rows: next(iter(staged_job_view.jobs(rows)), None))


def ended_job(number: int, then: Mapping[str, Any]) -> Query[dict[str, Any] | None]:
    """A job as the API described it when it ended, `then` its row as JSON; None when it is deleted."""
    parameters = _job_parameters(number, number, limit=1)
    return Query(
        statement("jobs"), parameters, lambda rows: staged_job_view.ended(rows, then) if rows else None
    )


def jobs(
    *, before: int | None = None, limit: int = 50, state: str | None = None, tenant: str | None = None,
    actor: str | None = None, name: str | None = None,
) -> Query[Page]:  # fmt: skip
    """A page of jobs, newest first, older than `before`; `name` is a part of the name, case ignored."""
    high = LAST if before is None else before - 1
    parameters = _job_parameters(0, high, limit=limit + 1, state=state, tenant=tenant, actor=actor, name=name)
    return Query(
        statement("jobs"),
        parameters,
        lambda rows: item_view.page(staged_job_view.jobs(rows), limit, "id"),
    )


def items(
    number: int, *, state: str | None = None, after: int = -1, limit: int = 100, cap: int = CUT
) -> Query[Page]:
    """A page of a job's items after item `after`, of one described state (states.ITEM_STATES) or any."""
    parameters = {"job": number, "state": state, "after": after, "limit": limit + 1, "cap": cap}
    return Query(
        statement("job_items"),
        parameters,
        lambda rows: item_view.page([item_view.item(number, row, cap) for row in rows], limit, "item"),
    )


def item(number: int, position: int) -> Query[dict[str, Any] | None]:
    """One item, with its whole arguments and result; None when the job has no such item."""
    page = items(number, after=position - 1, limit=1, cap=WHOLE)
    return Query(
        page.statement,
        {**page.parameters, "limit": 1},
        lambda rows: item_view.only(page.result(rows)[0], position),
    )


def attempts(number: int, position: int) -> Query[list[dict[str, Any]]]:
    """The attempts of an item that did not simply succeed, in order."""
    parameters = {"job": number, "item": position, "cap": WHOLE, "limit": MANY}
    return Query(statement("item_attempts"), parameters, item_view.timed("started_at", "ended_at"))


def errors(number: int) -> Query[list[dict[str, Any]]]:
    """A job's errors, grouped by kind, type and place, each with an example."""
    parameters = {"job": number, "cap": CUT, "limit": MANY}
    return Query(statement("job_errors"), parameters, item_view.timed("first_at", "last_at"))


def actions(number: int, *, before: int | None = None, limit: int = 100) -> Query[Page]:
    """A page of what was done to a job, the latest first: action, who, via, detail, done_at."""
    parameters = {"job": number, "before": LAST if before is None else before, "limit": limit + 1}
    times = item_view.timed("done_at")
    return Query(statement("job_actions"), parameters, lambda rows: item_view.page(times(rows), limit, "id"))


def callbacks(number: int) -> Query[list[dict[str, Any]]]:
    """Whom the ends of a job called, the latest end first, and how that went."""
    return Query(statement("job_callbacks"), {"job": number, "limit": MANY}, item_view.callbacks)


def workers(*, before: int | None = None, limit: int = 100, state: str | None = None) -> Query[Page]:
    """A page of worker processes, the latest first; `state` alive, stopped or dead; `beat_age` in seconds."""
    high = 2**31 - 1 if before is None else before
    parameters = {
        "before": high,
        "limit": limit + 1,
        "state": state,
        "dead_after": timings.DEAD_AFTER_SECONDS,
    }
    times = item_view.timed("started_at", "beat_at", "ended_at")
    return Query(statement("workers"), parameters, lambda rows: item_view.page(times(rows), limit, "id"))


def actors() -> Query[list[dict[str, Any]]]:
    """Every actor that any worker ever announced: name, queue, seen_at."""
    return Query(statement("known_actors"), {}, item_view.timed("seen_at"))


def verify(number: int | None = None) -> Query[dict[str, Any]]:
    """Recount a job, or all: the jobs looked at, the checks made, and each drift with both numbers."""
    low, high = (0, LAST) if number is None else (number, number)
    return Query(statement("recount"), {"low": low, "high": high}, item_view.verdict)


def migrations() -> Query[dict[int, tuple[str, bool]]]:
    """Every migration the database has had, {number: (name, breaking)}, for `migrate.judge`."""
    return Query(
        statement("applied_migrations"),
        {},
        lambda rows: {row["number"]: (row["name"], row["breaking"]) for row in rows},
    )


def _job_parameters(low: int, high: int, **given: Any) -> dict[str, Any]:
    absent = dict.fromkeys(("state", "tenant", "actor", "name"))
    bounds = {"dead_after": timings.DEAD_AFTER_SECONDS, "quiet_after": job_view.QUIET_AFTER}
    return {"low": low, "high": high, **bounds, **absent, **given}
