"""The statements of the sweep, for `middleware/sweep`: its lease, samples of jobs, and the search for lost messages."""

from collections.abc import Sequence
from typing import TypeAlias

from callboard.sql import timings
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import ALL_JOBS, JobPage, Lease, OpenJob
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_one, fetch_value, lists, statement

#: What was not published yet at some time, of some jobs: (job, first of its bulk items, first of any items, last job of
#: all). The last job is the same in each row: no item of the jobs after that one was published.
PublishMark: TypeAlias = list[tuple[int, int, int, int]]


def renew_lease(conn: Conn, holder: str, lease: float, rest: float) -> Lease | None:
    """Hold the lease for `lease` seconds more. Return None when it lapsed. With nothing to sweep it is given up: then
    any process may take it as soon as there is, or after `rest` seconds.
    """
    return fetch_one(conn, Lease, "renew_lease", holder=holder, lease=lease, rest=rest)


def acquire_lease(conn: Conn, holder: str, lease: float, rest: float) -> Lease | None:
    """Take the lease for `lease` seconds; return None when another process has it."""
    return fetch_one(conn, Lease, "acquire_lease", holder=holder, lease=lease, rest=rest)


def release_lease(conn: Conn, holder: str) -> None:
    """Release the lease."""
    execute(conn, "release_lease", holder=holder)


def follow_clock_set_back(conn: Conn, seconds: float) -> None:
    """The clock of the database was set back by so many seconds: let nothing wait for longer because of it."""
    execute(conn, "follow_clock_set_back", seconds=seconds)


def standing_jobs_to_seal(conn: Conn) -> list[int]:
    """Return the standing jobs whose day is over."""
    return fetch_ids(conn, "standing_jobs_to_seal")


def drop_messages_of_ended_jobs(conn: Conn, page: JobPage = ALL_JOBS, *, writes: bool = True) -> list[int]:
    """Drop outbox messages of jobs that are over, `DROP_BATCH_MESSAGES` at most, and the lanes and turns of others;
    return the ids of `DROP_BATCH_JOBS` at most that had some. Without `writes`, only find them, however many.
    """
    with transaction(conn, timings.LOCK_WAIT_SECONDS):
        jobs = fetch_ids(conn, "ended_turns", writes=writes, **page._asdict())
        if jobs and writes:
            execute(conn, "drop_messages_of_ended_jobs", jobs=jobs)
    return jobs


def end_frozen_copies(conn: Conn) -> int:
    """End the sessions of submitters that stand still in a COPY for too long; return how many."""
    return len(fetch_ids(conn, "end_frozen_copies"))


def analyze_grown_tables(conn: Conn) -> None:
    """Have PostgreSQL analyze the tables that have grown, so that plans fit them."""
    conn.execute(statement("analyze_grown_tables"))


def page_of_open_jobs(conn: Conn, after: int, limit: int) -> JobPage:
    """Return the page of `limit` open jobs with ids higher than `after`; the last page has no end."""
    last: int | None = fetch_value(conn, "page_of_open_jobs", after=after, limit=limit)
    return JobPage(after, ALL_JOBS.last if last is None else last)


def sample_jobs(conn: Conn, page: JobPage = ALL_JOBS) -> None:
    """Add a sample for each open job that moved."""
    execute(conn, "sample_jobs", **page._asdict())


def open_jobs(conn: Conn, quiet: float, *, after: int = 0, limit: int = timings.MAX_ITEM) -> list[OpenJob]:
    """Return the next open jobs with an id higher than `after`; `quiet`: seconds without a change."""
    return fetch(conn, OpenJob, "open_jobs", quiet=quiet, after=after, limit=limit)


def drop_unheld_running(conn: Conn) -> None:
    """Drop the rows of `running` whose worker lives and does not hold the item any more."""
    execute(conn, "drop_unheld_running")


def unheld_items(conn: Conn, ranges: Sequence[tuple[int, int, int]], limit: int) -> list[tuple[int, int, int, str]]:
    """Return published open items that no worker holds, (job, item, attempt, queue), `limit` of a range at most.

    A range is (job, first item, item after the last).
    """
    return execute(conn, "unheld_items", **lists("job low high", ranges), limit=limit).fetchall()


def oldest_heartbeat_seconds(conn: Conn) -> float | None:
    """Return the age of the oldest heartbeat of a live worker, in seconds; None when no worker lives."""
    age: float | None = fetch_value(conn, "oldest_heartbeat_seconds")
    return age


def publish_mark(conn: Conn, limit: int) -> PublishMark:
    """Return what is not published yet, in `limit` jobs at most; nothing when no job is open."""
    return execute(conn, "publish_mark", limit=limit).fetchall()


def passed_mark(conn: Conn, queue: str, mark: PublishMark) -> bool:
    """Whether a queue has delivered a message published after `mark`, and so all that were published before."""
    return bool(fetch_value(conn, "passed_mark", queue=queue, **lists("job low total", mark), last=mark[0][3]))


def republish(
    conn: Conn, job: int, items: Sequence[tuple[int, int]], holder: str | None = None, given_back: int | None = None
) -> int:
    """Put lost items, (item, attempt), into the outbox, if `holder` has the lease and this is still the `given_back` of
    the job (None: always); return how many.
    """
    given = lists("item attempt", items)
    return execute(conn, "republish", job=[job], **given, holder=holder, given_back=given_back).rowcount
