"""The statements of `middleware/sweep`: its lease, samples of jobs, and the search for lost messages."""

from collections.abc import Sequence
from typing import TypeAlias

from callboard.sql import timings
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import ALL_JOBS, JobPage, Lease, OpenJob
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_one, fetch_value, lists, statement

#: The items of some jobs that were not published at some time: (job, first such bulk item, first such item of any kind,
#: last job). The last job is the same in each row: no item of later jobs was published then.
PublishMark: TypeAlias = list[tuple[int, int, int, int]]


def renew_lease(conn: Conn, holder: str, lease: float, rest: float) -> Lease | None:
    """Renew the lease for `lease` seconds; return None when it has expired. If there is nothing to sweep, it is
    released: then any process may take it as soon as there is work, or after `rest` seconds.
    """
    return fetch_one(conn, Lease, "renew_lease", holder=holder, lease=lease, rest=rest)


def acquire_lease(conn: Conn, holder: str, lease: float, rest: float) -> Lease | None:
    """Take the lease for `lease` seconds; return None when another process has it."""
    return fetch_one(conn, Lease, "acquire_lease", holder=holder, lease=lease, rest=rest)


def release_lease(conn: Conn, holder: str) -> None:
    """Release the lease."""
    execute(conn, "release_lease", holder=holder)


def follow_clock_set_back(conn: Conn, seconds: float) -> None:
    """Adjust stored times after the database's clock was set back by `seconds`, so that nothing waits longer."""
    execute(conn, "follow_clock_set_back", seconds=seconds)


def standing_jobs_to_seal(conn: Conn) -> list[int]:
    """Return the standing jobs whose day is over."""
    return fetch_ids(conn, "standing_jobs_to_seal")


def drop_messages_of_ended_jobs(conn: Conn, page: JobPage = ALL_JOBS, *, writes: bool = True) -> list[int]:
    """Delete outbox messages of ended jobs, at most `DROP_BATCH_MESSAGES`; of ended jobs without messages, delete the
    lanes and turns. Returns the ids of these jobs, at most `DROP_BATCH_JOBS`. Without `writes`, only find them, all of
    them.
    """
    with transaction(conn, timings.LOCK_WAIT_SECONDS):
        jobs = fetch_ids(conn, "ended_turns", writes=writes, **page._asdict())
        if jobs and writes:
            execute(conn, "drop_messages_of_ended_jobs", jobs=jobs)
    return jobs


def end_frozen_copies(conn: Conn) -> int:
    """Terminate the sessions of submitters whose COPY has stood still for too long; return how many."""
    return len(fetch_ids(conn, "end_frozen_copies"))


def analyze_grown_tables(conn: Conn) -> None:
    """Make PostgreSQL analyze the tables that have grown, so that query plans fit them."""
    conn.execute(statement("analyze_grown_tables"))


def page_of_open_jobs(conn: Conn, after: int, limit: int) -> JobPage:
    """Return the page of `limit` open jobs with ids above `after`; the last page has no upper limit."""
    last: int | None = fetch_value(conn, "page_of_open_jobs", after=after, limit=limit)
    return JobPage(after, ALL_JOBS.last if last is None else last)


def sample_jobs(conn: Conn, page: JobPage = ALL_JOBS) -> None:
    """Add a sample for each open job that moved."""
    execute(conn, "sample_jobs", **page._asdict())


def open_jobs(conn: Conn, quiet: float, *, after: int = 0, limit: int = timings.MAX_ITEM) -> list[OpenJob]:
    """Return the next open jobs with an id above `after`; `quiet`: the seconds without a change for `OpenJob.quiet`."""
    return fetch(conn, OpenJob, "open_jobs", quiet=quiet, after=after, limit=limit)


def drop_unheld_running(conn: Conn) -> None:
    """Delete the rows of `running` whose worker is alive and no longer holds the item."""
    execute(conn, "drop_unheld_running")


def unheld_items(conn: Conn, ranges: Sequence[tuple[int, int, int]], limit: int) -> list[tuple[int, int, int, str]]:
    """Return published open items that no worker holds, (job, item, attempt, queue), at most `limit` per range.

    A range is (job, first item, item after the last).
    """
    return execute(conn, "unheld_items", **lists("job low high", ranges), limit=limit).fetchall()


def oldest_heartbeat_seconds(conn: Conn) -> float | None:
    """Return the age of the oldest heartbeat of a live worker, in seconds; None when no worker is alive."""
    age: float | None = fetch_value(conn, "oldest_heartbeat_seconds")
    return age


def publish_mark(conn: Conn, limit: int) -> PublishMark:
    """Return the items that are not published yet, of at most `limit` jobs; an empty list when no job is open."""
    return execute(conn, "publish_mark", limit=limit).fetchall()


def passed_mark(conn: Conn, queue: str, mark: PublishMark) -> bool:
    """Return whether a queue has delivered a message published after `mark`, and so all that were published before."""
    return bool(fetch_value(conn, "passed_mark", queue=queue, **lists("job low total", mark), last=mark[0][3]))


def republish(
    conn: Conn, job: int, items: Sequence[tuple[int, int]], holder: str | None = None, given_back: int | None = None
) -> int:
    """Put lost items, (item, attempt), into the outbox; return how many. Only if `holder` has the lease (None: always),
    and `given_back` is still the job's number (None: always).
    """
    given = lists("item attempt", items)
    return execute(conn, "republish", job=[job], **given, holder=holder, given_back=given_back).rowcount
