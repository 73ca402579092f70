"""Reads: each function describes one query; `run` and `arun` execute it on a sync or an async connection."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from psycopg.rows import dict_row

from callboard.sql.pool import AsyncConn, Conn
from callboard.sql.reads import item_view, staged_job_view
from callboard.sql.reads.item_view import Page, Rows
from callboard.sql.reads.job_filter import JOB_OPEN, JobFilter
from callboard.sql.statements import statement, with_timings

T = TypeVar("T")
#: The greatest id.
MAX_ID = 2**63 - 1
#: The most characters of arguments, results and messages in a list.
LIST_CHARACTERS = 4_096
#: The most characters of arguments, results and messages of one item.
ITEM_CHARACTERS = 1_048_576
#: More characters than any argument, result or message has.
ALL_CHARACTERS = 2**31 - 1
#: The most jobs that one page examines for filters without an index.
LOOK_AT_JOBS = 20_000
#: The most items that one page examines for a state without an index.
LOOK_AT_ITEMS = 50_000
#: The most attempts that one page examines for items that failed or were skipped.
LOOK_AT_ATTEMPTS = 20_000
#: Formats the rows of tokens, with their times as texts.
_tokens = item_view.with_iso_times("created_at", "expires_at", "used_at")
#: The points of a chart without its first and last, and the most lanes that are shown.
SAMPLES, LANES = 200, 50
#: The most rates of a job in a list.
PACES = 24
#: The most errors and callbacks of a job, and attempts of an item; few have a hundredth of that.
MAX_ROWS = 1_000


NO_FILTER = JobFilter()
#: The special characters of a LIKE pattern, and their replacement.
_SIGNS_OF_LIKE, _ESCAPED = re.compile(r"[%_\\]"), r"\\\g<0>"
#: The fields of a filter that are parameters with the same name.
_SAME = frozenset(("actor", "tenant", "key", "standing", "stalled", "failing"))


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """The name of a statement, its parameters, and the function that converts its rows to the result."""

    name: str
    parameters: Mapping[str, Any]
    result: Callable[[Rows], T]


def run(conn: Conn, query: Query[T]) -> T:
    """Execute a query and return its result. It is prepared at once, because planning a description of jobs takes
    longer than executing it.
    """
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(statement(query.name), with_timings(query.parameters), prepare=True)
        return query.result(cursor.fetchall())


async def arun(conn: AsyncConn, query: Query[T]) -> T:
    """Execute a query in an event loop and return its result."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement(query.name), with_timings(query.parameters), prepare=True)
        return query.result(await cursor.fetchall())


def job(number: int, *, tenant: str | None = None) -> Query[dict[str, Any] | None]:
    """Describe a job; None when there is none with this id, or of this tenant (None: any)."""
    return Query("jobs_by_id", {"jobs": [number], "tenant": tenant}, lambda rows: _first(staged_job_view.jobs(rows)))


def ended_job(number: int, then: Mapping[str, Any]) -> Query[dict[str, Any] | None]:
    """Describe a job as it was when it ended; `then`: its row of that time as JSON. None when it is deleted."""
    parameters = {"jobs": [number], "tenant": None}
    return Query("jobs_by_id", parameters, lambda rows: _first(staged_job_view.ended(rows, then)))


def jobs_by_id(numbers: Sequence[int]) -> Query[dict[int, dict[str, Any]]]:
    """Describe these jobs, as {id: description}; those that do not exist are left out."""
    parameters = {"jobs": numbers, "tenant": None}
    return Query("jobs_by_id", parameters, lambda rows: {found["id"]: found for found in staged_job_view.jobs(rows)})


def is_of_tenant(number: int, tenant: str) -> Query[bool]:
    """Return whether this tenant has a job with this id."""
    return Query("job_of_tenant", {"job": number, "tenant": tenant}, bool)


def jobs(wanted: JobFilter = NO_FILTER, *, before: int | None = None, limit: int = 50) -> Query[Page]:
    """Describe a page of the `wanted` jobs with ids below `before`, newest first.

    A page may be short, or empty, and still have a next one: for filters without an index, a page examines
    `LOOK_AT_JOBS` jobs.
    """
    source, its_fields = _source(wanted)
    # The statement for all jobs also reads stages, which no list shows.
    looks = source == "jobs" or bool(wanted.given.keys() - its_fields)
    parameters = {
        **{name: getattr(wanted, name) for name in _SAME},
        **_moments(wanted),
        "states": None if wanted.states is None else sorted(wanted.states),
        "state": next(iter(wanted.states or ()), None),
        "names": [_containing(name) for name in wanted.names],
        "fields": list(wanted.metadata),
        "values": list(wanted.metadata.values()),
        "low": 0,
        "high": MAX_ID - 1 if before is None else before - 1,
        "limit": limit + 1,
        "look_at": max(LOOK_AT_JOBS, limit + 1) if looks else limit + 1,
    }
    return Query(source, parameters, lambda rows: _page_of_jobs(rows, limit))


def _source(wanted: JobFilter) -> tuple[str, set[str]]:
    """Return the statement that reads the fewest jobs for a filter, and the fields of the filter in its index."""
    states = wanted.states
    ways: tuple[tuple[object, str, set[str]], ...] = (
        (wanted.key is not None, "jobs_of_key", {"key"}),
        (
            wanted.stalled or (states is not None and states <= JOB_OPEN),
            "jobs_open",
            {"states"} if states == JOB_OPEN else set(),
        ),
        (wanted.failing, "jobs_failing", set()),
        (wanted.actor is not None, "jobs_of_actor", {"actor"}),
        (wanted.tenant is not None, "jobs_of_tenant", {"tenant"}),
        (states is not None and len(states) == 1, "jobs_of_state", {"states"}),
        (wanted.standing, "jobs_of_sends", {"standing"}),
        (True, "jobs", set()),
    )
    return next((found, fields) for holds, found, fields in ways if holds)


def job_counts(tenant: str | None = None) -> Query[dict[str, int]]:
    """Count the jobs of a tenant (None: all): `open`; `stalled` ones among these; `ended`; and `failed_today`: jobs
    that ended within 24 hours and failed, or have failed items.
    """
    return Query("job_counts", {"tenant": tenant}, lambda rows: dict(rows[0]))


def items(
    number: int, *, state: str | None = None, error: str | None = None, keys: Sequence[str] = (),
    after: int | None = None, limit: int = 100, cap: int = LIST_CHARACTERS,
) -> Query[Page]:  # fmt: skip
    """Describe a page of a job's items after item `after` that match all arguments.

    `state`: one of ITEM_STATES. `error`: the error by which they failed: the id of a group of errors, or a type with or
    without its module. `keys`: they have one of these keys. A page may be short, or empty, and still have a next one:
    it examines `LOOK_AT_ITEMS` items, or `LOOK_AT_ATTEMPTS` attempts for failed or skipped items.
    """
    parameters = {
        "job": number,
        "state": "key" if keys else "failed" if error is not None else state,
        "error": error,
        "keys": list(keys),
        "after": -1 if after is None else after,
        "limit": limit + 1,
        "cap": cap,
        "look_at": LOOK_AT_ITEMS,
        "look_at_tries": max(LOOK_AT_ATTEMPTS, limit + 1),
    }

    def page(rows: Rows) -> Page:
        found, following = item_view.items(number, rows, cap, limit)
        return [item for item in found if state in (None, item["state"])], following

    return Query("job_items", parameters, page)


def item(number: int, position: int, cap: int = ITEM_CHARACTERS) -> Query[dict[str, Any] | None]:
    """Describe one item, with its arguments and result up to `cap` characters; None when the job has no such item."""
    page = items(number, after=position - 1, limit=1, cap=cap)
    parameters = {**page.parameters, "limit": 1}
    return Query(
        page.name, parameters, lambda rows: _first([one for one in page.result(rows)[0] if one["item"] == position])
    )


def attempts(number: int, position: int) -> Query[list[dict[str, Any]]]:
    """Return the attempts of an item that did not succeed, in order."""
    parameters = {"job": number, "item": position, "cap": ITEM_CHARACTERS, "limit": MAX_ROWS}
    return Query("item_attempts", parameters, item_view.with_iso_times("started_at", "ended_at"))


def errors(number: int) -> Query[list[dict[str, Any]]]:
    """Return a job's errors, grouped by kind, type, place and pattern of the message, each with an example."""
    parameters = {"job": number, "cap": LIST_CHARACTERS, "limit": MAX_ROWS}
    return Query("job_errors", parameters, item_view.with_iso_times("first_at", "last_at"))


def retried_items(
    number: int, states: Sequence[str], items: Iterable[int] | None = None, error: str | None = None
) -> Query[int]:
    """Count the items that a retry with this selection would retry: see `RetrySelection`."""
    parameters = {
        "job": number,
        "states": list(states),
        "items": None if items is None else list(items),
        "error": error,
    }
    return Query("retried_items", parameters, lambda rows: int(rows[0]["items"]))


def error(number: int, group: str) -> Query[dict[str, Any] | None]:
    """Return one group of a job's errors by its id, with the traceback of its example; None if there is none."""
    parameters = {"job": number, "error": group, "cap": ITEM_CHARACTERS}
    times = item_view.with_iso_times("first_at", "last_at")
    return Query("job_error", parameters, lambda rows: _first(times(rows)))


def actions(number: int, *, before: int | None = None, limit: int = 100) -> Query[Page]:
    """Return a page of a job's history, the latest action first: action, who, via, address, detail, done_at."""
    return _latest("job_actions", item_view.with_iso_times("done_at"), before, limit, job=number)


def callbacks(number: int) -> Query[list[dict[str, Any]]]:
    """Describe the callbacks of a job; those of its latest end come first."""
    return Query("job_callbacks", {"job": number, "limit": MAX_ROWS}, item_view.callbacks)


def token(digest: bytes, kinds: Sequence[str]) -> Query[dict[str, Any] | None]:
    """Describe the valid token of one of these kinds whose secret has this digest; None if there is none."""
    return Query("token", {"digest": digest, "kinds": list(kinds)}, lambda rows: _first(_tokens(rows)))


def tokens(*, before: int | None = None, limit: int = 100, tenant: str | None = None) -> Query[Page]:
    """Describe a page of the valid tokens of a tenant (None: all), the latest first."""
    return _latest("tokens", _tokens, before, limit, tenant=tenant)


def any_login() -> Query[bool]:
    """Return whether there is a token for logging in."""
    return Query("any_login", {}, bool)


def workers(*, before: int | None = None, limit: int = 100, state: str | None = None) -> Query[Page]:
    """Return a page of worker processes, the latest first; `state`: one of WORKER_STATES."""
    times = item_view.with_iso_times("started_at", "beat_at", "ended_at")
    return _latest("workers", times, before, limit, state=state)


def server() -> Query[dict[str, Any]]:
    """Return the database's time (`now`), the pid of the server process (`pid`), and whether it refuses writes
    (`read_only`).
    """
    return Query("server", {}, lambda rows: rows[0])


def long_locks(seconds: float) -> Query[list[dict[str, Any]]]:
    """Return the sessions that have blocked other sessions on our tables for `seconds`: `pid`; `who`, a text; how many
    are `waiting` (0: they retry instead); and `whole`, whether readers of a whole table are blocked.
    """
    return Query("long_locks", {"seconds": seconds}, list)


def queues() -> Query[list[dict[str, Any]]]:
    """Return every queue of a known actor or an open job: its name, its actors, its actors that no live worker has
    (`unserved`), and items `pending`.
    """
    lists = ("actors", "unserved")
    return Query("queues", {}, lambda rows: [{**r, **{n: r[n] or [] for n in lists}} for r in rows])


def last_errors(items: Sequence[tuple[int, int]]) -> Query[dict[tuple[int, int], dict[str, Any]]]:
    """Return the last failures of items, as {(job, item): failure}; items without one are left out."""
    parameters = {"jobs": [job for job, _ in items], "items": [item for _, item in items], "cap": LIST_CHARACTERS}
    return Query("last_errors", parameters, lambda rows: {(row["job"], row["item"]): row for row in rows})


def samples(number: int) -> Query[list[dict[str, Any]]]:
    """Return the history of a job in `SAMPLES` + 2 points: each has `at`, `ended`, `failed`, and the `rate` since the
    last.
    """
    return Query("samples", {"job": number, "steps": SAMPLES}, item_view.points)


def paces(numbers: Sequence[int]) -> Query[dict[int, list[float]]]:
    """Return the latest rates of jobs, in items per second, at most `PACES` each; none for jobs with few samples."""
    return Query("paces", {"jobs": numbers, "most": PACES + 1}, item_view.paces)


def lanes(number: int) -> Query[list[dict[str, Any]]]:
    """Return lanes of a job, at most `LANES`: `lane`, the items `in_flight`, its `width`, and the items `waiting`
    (counted up to `MAX_ROWS`).
    """
    parameters = {"job": number, "limit": LANES, "most": MAX_ROWS}
    return Query("lanes", parameters, list)


def verify(number: int | None = None) -> Query[dict[str, Any]]:
    """Recount a job, or all jobs: see `drift_report`."""
    low, high = (0, MAX_ID) if number is None else (number, number)
    return Query("recount", {"low": low, "high": high}, item_view.drift_report)


def metric_items() -> Query[Rows]:
    """Return counts of items by actor and queue: open items by state, and ended ones as counters that never fall."""
    return Query("metric_items", {}, lambda rows: rows)


def metric_facts() -> Query[Mapping[str, Any]]:
    """Return counts of jobs and workers, and the seconds for which overdue work has waited; None: no such work."""
    return Query("metric_facts", {}, lambda rows: rows[0])


def migrations() -> Query[dict[int, tuple[str, bool]]]:
    """Return the applied migrations, {number: (name, breaking)}, for `migrate.check_applied`."""
    return Query("applied_migrations", {}, lambda rows: {row["number"]: (row["name"], row["breaking"]) for row in rows})


def _latest(
    name: str, rows_of: Callable[[Rows], list[dict[str, Any]]], before: int | None, limit: int, **parameters: Any
) -> Query[Page]:
    """Describe a page of the rows with ids below `before`, the latest first."""
    parameters |= {"before": MAX_ID if before is None else before, "limit": limit + 1}
    return Query(name, parameters, lambda rows: item_view.page(rows_of(rows), limit, "id"))


def _containing(text: str) -> str:
    """Return the LIKE pattern for texts that contain `text`."""
    return f"%{_SIGNS_OF_LIKE.sub(_ESCAPED, text)}%"


def _moments(wanted: JobFilter) -> dict[str, Any]:
    """Return the times of a filter as parameters: each is a time, or a span before the database's now."""
    found: dict[str, Any] = {}
    for name in ("created_after", "created_before", "ended_after"):
        moment = getattr(wanted, name)
        ago = isinstance(moment, timedelta)
        found |= {name: None if ago else moment, f"{name}_ago": moment if ago else None}
    return found


def _page_of_jobs(rows: Rows, limit: int) -> Page:
    """Return at most `limit` of the found jobs, and the cursor of the next page or None."""
    found = staged_job_view.jobs(rows)
    return found[:limit], found[limit - 1]["id"] if len(found) > limit else rows[0]["looked_at"]


def _first(found: Sequence[T]) -> T | None:
    return found[0] if found else None
