"""Submission: create a job, store its items, seal it."""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from psycopg.errors import LockNotAvailable
from psycopg.types.json import Jsonb

from callboard.sql import timings
from callboard.sql.callback_targets import Targets
from callboard.sql.errors import UserFunctionFailed
from callboard.sql.json_values import is_storable
from callboard.sql.limits import NO_LIMITS, Limits
from callboard.sql.pool import Conn, plain_errors, transaction
from callboard.sql.rows import ALL_JOBS, JobPage, SubmittedJob
from callboard.sql.signature import Signature
from callboard.sql.statements import execute, fetch_ids, fetch_one, gives_row, required, statement
from callboard.sql.writes import retention
from callboard.sql.writes.jobs import lock_jobs, write_each
from callboard.sql.writes.requests import (
    Requester,
    at_database_time,
    check_flag,
    check_name,
    check_text,
    job_status,
    json_object,
    refuse,
)

#: No additional options.
NOTHING: Mapping[str, Any] = MappingProxyType({})
#: The header and the trailer of binary COPY, and the start of a row of `copy_items` before its arguments: the number of
#: columns, then each column after its length in bytes.
COPY_BEGIN, COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
COPY_ROW = struct.Struct("!hiqiii")
#: The most characters of a job's name, and of its columns that are in an index.
NAME_CHARACTERS, KEY_CHARACTERS = 1_000, 300


class KeyInUse(ValueError):
    """The key belongs to a job that was submitted differently; the text says what differs, and what to do."""

    def __init__(self, key: str | None, job: int, differs: str) -> None:
        super().__init__(
            f"the key {key!r} is that of job {job}, which was submitted with {differs}: take another key, or pass "
            "key_reuse to start a new job when that one is over"
        )


def create_job(
    conn: Conn, *, name: str, key: str | None, tenant: str | None, actor: str | None, queue: str | None,
    metadata: dict[str, Any] | None, created_by: str | None, limits: Limits = NO_LIMITS, targets: Targets = None,
    chunk: int | None = None, key_reuse: bool = False, held: bool = False, alone: bool = False,
    also_asked: Mapping[str, Any] = NOTHING, trace: Mapping[str, str] | None = None,
) -> SubmittedJob:  # fmt: skip
    """Create a job, or find the one with this key, and renew its submission. `key_reuse`: an ended job gives its key to
    the new one. `held`: nothing of a new job is published before it is sealed. `alone`: not while another submission of
    the job is running; then the result has `elsewhere`. `also_asked`: see `job_parameters`. `trace`: the OpenTelemetry
    context.

    Raises KeyInUse, and ValueError for a text or metadata that a row can't store.
    """
    check_flag("key_reuse", key_reuse)
    asked = {"actor": actor, "chunk": chunk, **also_asked}
    parameters = {
        **job_parameters(
            conn, asked, name=name, key=key, tenant=tenant, metadata=metadata, created_by=created_by, limits=limits,
            targets=targets, trace=trace,
        ),
        "actor": actor, "queue": queue, "chunk": chunk, "held": held, "alone": alone,
    }  # fmt: skip
    with transaction(conn) if key_reuse else nullcontext():
        if key_reuse:
            free_key(conn, parameters["tenant"], key)
        row = execute(conn, "create_job", **parameters).fetchone()
        # As in standing_job: another transaction committed the job between the two halves of the statement.
        row = row or required(execute(conn, "create_job", **parameters).fetchone())
    *found, known = row
    made = SubmittedJob(*found)
    check_asked(key, made.job, known, parameters)
    return made


def job_parameters(
    conn: Conn, asked: Mapping[str, Any], *, name: str, key: str | None, tenant: str | None,
    metadata: dict[str, Any] | None, created_by: str | None, limits: Limits, targets: Targets,
    trace: Mapping[str, str] | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the parameters of the statements that create a job. `asked`: further options that must be equal when the
    same submission is repeated.

    Raises ValueError for a text or metadata that a row can't store.
    """
    tenant, metadata = "" if tenant is None else tenant, {} if metadata is None else metadata
    check_name("name", name, NAME_CHARACTERS)
    check_name("key", key, KEY_CHARACTERS)
    for option, text in (("tenant", tenant), ("created_by", created_by)):
        check_text(option, text, KEY_CHARACTERS)
    kept = json_object("metadata", metadata)
    options = {**asked, "metadata": metadata, "callbacks": targets, **limits.as_json()}
    limits = at_database_time(conn, limits)
    return {
        "name": name, "key": key, "tenant": tenant, "created_by": created_by, "metadata": kept,
        "callbacks": targets and Jsonb(targets), "limits": Jsonb(limits.as_json()), **limits.columns(),
        "trace": trace and Jsonb(trace),
        "asked": None if key is None else Jsonb({option: _digest(value) for option, value in options.items()}),
    }  # fmt: skip


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def check_asked(key: str | None, job: int, known: Mapping[str, str] | None, parameters: Mapping[str, Any]) -> None:
    """Raise KeyInUse if the job with this key was submitted with other options."""
    if key is not None:
        known, asked = known or {}, parameters["asked"].obj
        if differ := sorted(o for o in {**known, **asked} if known.get(o) != asked.get(o)):
            raise KeyInUse(key, job, f"other options ({', '.join(differ)})")


def free_key(conn: Conn, tenant: str, key: str | None) -> None:
    """Remove the key from the job that has it, if that job is over."""
    execute(conn, "free_key", tenant=tenant, key=key)


class SubmissionState(NamedTuple):
    """The progress of a job's submission. `is_open`: it takes items until it is sealed by hand. `submitting`: whether
    it is being submitted now; None: it is not submitted in bulk, or its submission is done.
    """

    total: int
    consumed: int
    sealed: bool
    stopped: bool
    is_open: bool
    submitting: bool | None


def lock(conn: Conn, job: int) -> SubmissionState | None:
    """Lock a job for the transaction; return the progress of its submission, None if there is no such job."""
    return fetch_one(conn, SubmissionState, "lock_submission", job=job)


def store_chunk(
    conn: Conn, job: int, start: int, chunk: Sequence[tuple[bytes, str | None]], *, keyed: bool,
    digest: bytes | None = None,
) -> tuple[str, int]:  # fmt: skip
    """Store the inputs from number `start`, each (args, item key), in one transaction, if `start` inputs are consumed.
    `digest`: the digest of all inputs up to the last of these, by which a repeated submission is compared.

    Returns ("stored", items stored), ("elsewhere", inputs consumed) when another submission with the same key is ahead,
    ("sealed", inputs consumed), ("stopped", inputs consumed), or ("deleted", `start`).
    """
    with transaction(conn):
        found = lock(conn, job)
        if found is None:
            return "deleted", start
        if found.sealed or found.stopped or found.consumed != start:
            how = "sealed" if found.sealed else "stopped" if found.stopped else "elsewhere"
            return how, found.consumed
        return "stored", _store(conn, job, found.total, chunk, keyed=keyed, digest=digest)


def add_items(
    conn: Conn, job: int, by: Requester, chunk: Sequence[tuple[bytes, str | None]], *, keyed: bool,
    start: int | None = None,
) -> None:  # fmt: skip
    """Add items, each (args, item key), to a job that is open for more, in one transaction. `start`: the number of
    inputs that it must have consumed before, if given.

    Raises NoSuchJob, and NotPossible for a job that takes no items, or has consumed another number.
    """
    with transaction(conn):
        status = job_status(conn, job, by)
        found = required(lock(conn, job))
        if found.sealed or found.stopped:
            refuse(job, status, "it takes no more items")
        if not found.is_open:
            refuse(job, status, "it takes no items beside those of its submission, since it was not made `open`")
        if start not in (None, found.consumed):
            refuse(job, status, f"{found.consumed:,} inputs were added to it, and not {start:,}")
        _store(conn, job, found.total, chunk, keyed=keyed)


def _store(
    conn: Conn, job: int, total: int, chunk: Sequence[tuple[bytes, str | None]], *, keyed: bool,
    digest: bytes | None = None,
) -> int:  # fmt: skip
    """Store items of a locked job after its `total` items; return how many."""
    stored = _copy_keyed(conn, job, total, chunk) if keyed else _copy(conn, job, total, chunk)
    add_to_total(conn, job, stored=stored, read=len(chunk), digest=digest)
    return stored


def add_to_total(conn: Conn, job: int, *, stored: int, read: int, digest: bytes | None = None) -> None:
    """Count `stored` items of `read` inputs in a locked job."""
    execute(conn, "add_to_total", job=job, stored=stored, read=read, digest=digest)


def _copy(conn: Conn, job: int, total: int, chunk: Sequence[tuple[bytes, str | None]]) -> int:
    row = COPY_ROW.pack  # psycopg takes twice the time per row
    rows = [row(3, 8, job, 4, item, len(args)) + args for item, (args, _) in enumerate(chunk, total)]
    cursor = conn.cursor()
    with plain_errors(), cursor.copy(statement("copy_items")) as copy:
        copy.write(b"".join((COPY_BEGIN, *rows, COPY_END)))
    if cursor.rowcount != len(chunk):
        raise UserFunctionFailed("a trigger keeps rows out of callboard.items, as one that returns NULL does")
    return len(chunk)


def _copy_keyed(conn: Conn, job: int, total: int, chunk: Sequence[tuple[bytes, str | None]]) -> int:
    execute(conn, "create_staging_table")
    with conn.cursor().copy(statement("copy_to_staging")) as copy:
        copy.set_types(["int4", "text", "bytea"])
        for line, (args, key) in enumerate(chunk):
            copy.write_row((line, key, args))
    return execute(conn, "insert_staged_items", job=job, total=total).rowcount


def seal_job(conn: Conn, job: int) -> bool:
    """Seal a job; return False when it was already sealed or stopped."""
    return gives_row(conn, "seal_job", job=job)


def open_job(conn: Conn, job: int) -> bool:
    """Open a job for more items after its submission; return False when it was already sealed or stopped."""
    return gives_row(conn, "open_job", job=job)


def release_submission(conn: Conn, job: int) -> bool:
    """End the lease of a submission that broke off, so that the next can go on at once; False: the job takes none."""
    return bool(execute(conn, "release_submission", job=job).rowcount)


def discard_job(conn: Conn, job: int) -> bool:
    """Delete a job whose submission was refused; return False if some of its items may have run."""
    with transaction(conn):
        found = fetch_ids(conn, "discard_submission", job=job)
        return bool(found and retention.mark_deleted(conn, found[:1]))


def fail_submission(conn: Conn, job: int, reason: str) -> None:
    """Fail a job whose submission broke off and can't be continued."""
    execute(conn, "fail_submission", job=job, reason=reason)


def renew_submissions(conn: Conn, jobs: Iterable[int]) -> list[int]:
    """Renew the submission leases of these jobs. Returns the jobs that another transaction has locked for
    `LOCK_WAIT_SECONDS`, or whose update a user's trigger refuses.
    """
    return write_each(partial(_renew_submissions, conn), jobs)


def _renew_submissions(conn: Conn, jobs: list[int]) -> list[int]:
    locked = fetch_ids(conn, "renew_submissions", jobs=jobs)
    if locked:
        # A transaction that waits for the lock gets it before the sweep, which does not wait, can see an expired lease.
        with suppress(LockNotAvailable), transaction(conn, timings.LOCK_WAIT_SECONDS):
            lock_jobs(conn, locked)
            return fetch_ids(conn, "renew_submissions", jobs=locked)
    return locked


def fail_abandoned_submissions(conn: Conn, page: JobPage = ALL_JOBS, *, writes: bool = True) -> list[int]:
    """Fail the jobs without a key whose submission lease expired; return their ids. Without `writes` only find them."""
    return fetch_ids(conn, "fail_abandoned_submissions", writes=writes, **page._asdict())


def known_actor(conn: Conn, name: str) -> tuple[str, Signature | None] | None:
    """Return the queue and the signature of an actor that a worker announced; None for an unknown actor."""
    row = execute(conn, "known_actor", name=name).fetchone() if is_storable(name) else None
    return (row[0], Signature.from_json(name, row[1])) if row else None
