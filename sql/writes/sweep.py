"""The statements of the sweep, for `middleware/sweep`: its lease, samples of jobs, and the search for lost messages."""

from collections.abc import Sequence

from callboard.sql import timings
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import ALL_JOBS, JobPage, Lease, OpenJob, PublishMark
from callboard.sql.statements import required, statement


def renew_lease(conn: Conn, holder: str, lease: float, rest: float) -> Lease | None:
    """Hold the lease for `lease` seconds more. Return None when it lapsed. With nothing to sweep it is given up: then
    any process may take it as soon as there is, or after `rest` seconds.
    """
    parameters = {"holder": holder, "lease": lease, "rest": rest, **timings.death()}
    row = conn.execute(statement("renew_lease"), parameters).fetchone()
    return None if row is None else Lease(*row)


def acquire_lease(conn: Conn, holder: str, lease: float, rest: float) -> Lease | None:
    """Take the lease for `lease` seconds; return None when another process has it."""
    row = conn.execute(statement("acquire_lease"), {"holder": holder, "lease": lease, "rest": rest}).fetchone()
    return None if row is None else Lease(*row)


def release_lease(conn: Conn, holder: str) -> None:
    """Release the lease."""
    conn.execute(statement("release_lease"), (holder,))


def follow_clock_set_back(conn: Conn, seconds: float) -> None:
    """The clock of the database was set back by so many seconds: let nothing wait for longer because of it."""
    conn.execute(statement("follow_clock_set_back"), {"seconds": seconds})


def standing_jobs_to_seal(conn: Conn) -> list[int]:
    """Return the standing jobs whose day is over."""
    return [row[0] for row in conn.execute(statement("standing_jobs_to_seal"))]


def drop_messages_of_ended_jobs(conn: Conn) -> None:
    """Drop outbox messages of jobs that are over, `DROP_BATCH_MESSAGES` at most, and the lanes and turns of others."""
    jobs = [row[0] for row in conn.execute(statement("ended_turns"), (timings.DROP_BATCH_JOBS,))]
    if jobs:
        parameters = {"jobs": jobs, "limit": timings.DROP_BATCH_MESSAGES}
        with transaction(conn):
            conn.execute(statement("search_by_index"))
            conn.execute(statement("drop_messages_of_ended_jobs"), parameters)


def analyze_grown_tables(conn: Conn) -> None:
    """Have PostgreSQL analyze the tables that have grown, so that plans fit them."""
    conn.execute(statement("analyze_grown_tables"))


def page_of_open_jobs(conn: Conn, after: int, limit: int) -> JobPage:
    """Return the page of `limit` open jobs with ids higher than `after`; the last page has no end."""
    row = required(conn.execute(statement("page_of_open_jobs"), {"after": after, "limit": limit}).fetchone())
    return JobPage(after, ALL_JOBS.last if row[0] is None else row[0])


def sample_jobs(conn: Conn, page: JobPage = ALL_JOBS) -> None:
    """Add a sample for each open job that moved."""
    conn.execute(statement("sample_jobs"), {"after": page.after, "last": page.last})


def open_jobs(conn: Conn, quiet: float, *, after: int = 0, limit: int = timings.MAX_ITEM) -> list[OpenJob]:
    """Return the next open jobs with an id higher than `after`; `quiet`: seconds without a change."""
    parameters = {"quiet": quiet, "after": after, "limit": limit}
    return [OpenJob(*row) for row in conn.execute(statement("open_jobs"), parameters)]


def drop_unheld_running(conn: Conn) -> None:
    """Drop the rows of `running` whose worker lives and does not hold the item any more."""
    conn.execute(statement("drop_unheld_running"), {"dead_after": timings.DEAD_AFTER_SECONDS})


def unheld_items(conn: Conn, ranges: Sequence[tuple[int, int, int]], limit: int) -> list[tuple[int, int, int, str]]:
    """Return published open items that no worker holds, (job, item, attempt, queue), `limit` of a range at most.

    A range is (job, first item, item after the last).
    """
    parameters = {
        "job": [job for job, _, _ in ranges],
        "low": [low for _, low, _ in ranges],
        "high": [high for _, _, high in ranges],
        "limit": limit,
    }
    return conn.execute(statement("unheld_items"), parameters).fetchall()


def oldest_heartbeat_seconds(conn: Conn) -> float | None:
    """Return the age of the oldest heartbeat of a live worker, in seconds; None when no worker lives."""
    row = conn.execute(statement("oldest_heartbeat_seconds")).fetchone()
    return row[0] if row else None


def publish_mark(conn: Conn, limit: int) -> PublishMark | None:
    """Return what is not published yet, in `limit` jobs at most; None when no job is open."""
    rows = conn.execute(statement("publish_mark"), {"window": timings.PUBLISH_WINDOW_ITEMS, "limit": limit}).fetchall()
    return PublishMark([(row[0], row[1], row[2]) for row in rows], rows[0][3]) if rows else None


def passed_mark(conn: Conn, queue: str, mark: PublishMark) -> bool:
    """Whether a queue has delivered a message published after `mark`, and so all that were published before."""
    jobs, lows, totals = zip(*mark.jobs, strict=True)
    parameters = {"queue": queue, "job": list(jobs), "low": list(lows), "total": list(totals), "last": mark.last}
    row = conn.execute(statement("passed_mark"), parameters).fetchone()
    return row is not None and bool(row[0])


def republish(conn: Conn, job: int, items: Sequence[tuple[int, int]], holder: str | None = None) -> int:
    """Put lost items, (item, attempt), into the outbox, if `holder` has the lease (None: always); return how many."""
    parameters = {"job": [job], "item": [i[0] for i in items], "attempt": [i[1] for i in items], "holder": holder}
    return conn.execute(statement("republish"), parameters).rowcount
