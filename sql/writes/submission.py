"""Submission: make a job, store its items, seal it."""

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from callboard.sql import timings
from callboard.sql.callback_targets import NO_TARGETS, Targets
from callboard.sql.limits import NO_LIMITS, Limits
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import Submission
from callboard.sql.statements import required, statement


def create_job(
    conn: Conn, *, name: str, key: str | None, tenant: str, actor: str | None, queue: str | None,
    metadata: dict[str, Any], created_by: str | None, limits: Limits = NO_LIMITS, targets: Targets = NO_TARGETS,
    chunk: int = 1,
) -> Submission:  # fmt: skip
    """Make a job, or find the one with this key, and renew its submission."""
    parameters = {
        "name": name, "key": key, "tenant": tenant, "actor": actor, "queue": queue,
        "metadata": Jsonb(metadata), "created_by": created_by, "lease": timings.SUBMISSION_LEASE_SECONDS,
        "chunk": chunk, "callbacks": (words := targets.as_json()) and Jsonb(words),
        "limits": Jsonb(limits.as_json()), **limits.columns(),
    }  # fmt: skip
    row = conn.execute(statement("create_job"), parameters).fetchone()
    # As in standing_job: lost to a transaction that commits between the two halves.
    return Submission(*(row or required(conn.execute(statement("create_job"), parameters).fetchone())))


def store_chunk(
    conn: Conn, job: int, start: int, chunk: Sequence[tuple[bytes, str | None]], *, keyed: bool
) -> tuple[str, int]:
    """Store the inputs from number `start`, each (args, item key), all or nothing, if `start` inputs are consumed.

    Returns ("stored", items stored), ("elsewhere", inputs consumed) when another submission of the same key is ahead,
    ("sealed", inputs consumed), ("stopped", inputs consumed), or ("deleted", `start`).
    """
    with transaction(conn):
        found = conn.execute(statement("lock_submission"), (job,)).fetchone()
        if found is None:
            return "deleted", start
        total, consumed, sealed, stopped = found
        if sealed or stopped or consumed != start:
            return ("sealed" if sealed else "stopped" if stopped else "elsewhere"), consumed
        stored = _copy_keyed(conn, job, total, chunk) if keyed else _copy(conn, job, total, chunk)
        conn.execute(statement("add_to_total"), {"job": job, "stored": stored, "read": len(chunk)})
        return "stored", stored


def _copy(conn: Conn, job: int, total: int, chunk: Sequence[tuple[bytes, str | None]]) -> int:
    with conn.cursor().copy(statement("copy_items")) as copy:
        copy.set_types(["int8", "int4", "bytea"])
        for item, (args, _) in enumerate(chunk, total):
            copy.write_row((job, item, args))
    return len(chunk)


def _copy_keyed(conn: Conn, job: int, total: int, chunk: Sequence[tuple[bytes, str | None]]) -> int:
    conn.execute(statement("create_staging_table"))
    with conn.cursor().copy(statement("copy_to_staging")) as copy:
        copy.set_types(["int4", "text", "bytea"])
        for line, (args, key) in enumerate(chunk):
            copy.write_row((line, key, args))
    return conn.execute(statement("insert_staged_items"), {"job": job, "total": total}).rowcount


def seal_job(conn: Conn, job: int) -> bool:
    """Seal a job; return False when it was sealed or stopped before."""
    return conn.execute(statement("seal_job"), (job,)).fetchone() is not None


def fail_submission(conn: Conn, job: int, reason: str) -> None:
    """Fail a job whose submission broke off and can't be continued."""
    conn.execute(statement("fail_submission"), (reason, job))


def renew_submissions(conn: Conn, jobs: Iterable[int]) -> None:
    """Renew the leases of the submissions of these jobs."""
    conn.execute(
        statement("renew_submissions"), {"jobs": list(jobs), "lease": timings.SUBMISSION_LEASE_SECONDS}
    )


def fail_abandoned_submissions(conn: Conn) -> list[int]:
    """Fail the jobs without a key whose submission lease lapsed; return their ids."""
    return [row[0] for row in conn.execute(statement("fail_abandoned_submissions"))]


def known_actor(conn: Conn, name: str) -> str | None:
    """Return the queue of an actor that some worker announced; None for an unknown actor."""
    row = conn.execute(statement("known_actor"), (name,)).fetchone()
    return row[0] if row else None
