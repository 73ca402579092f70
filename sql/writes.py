"""One function a write statement; each takes a connection, and a transaction where several belong together."""

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from callboard.sql.limits import NO_LIMITS, Limits
from callboard.sql.pool import Conn
from callboard.sql.rows import (
    BulkClaim,
    Claim,
    Control,
    Event,
    Failure,
    Mark,
    NewItem,
    Out,
    Outgoing,
    Retry,
    Running,
    Stack,
    Submission,
    WorkerInfo,
)  # fmt: skip
from callboard.sql.statements import statement
from callboard.sql.targets import NO_TARGETS, Targets

#: Seconds without a heartbeat after which a worker is taken for dead.
DEAD_AFTER = 10.0
#: Seconds for which a publisher's claim holds, renewed with each batch. One whose answer was lost holds up its job.
PUBLISH_LEASE = 8.0
#: Items that a publisher may send beyond the committed watermark.
WINDOW = 1000
#: Outbox rows of stopped jobs that are dropped at a time.
DROPPED = 50_000
#: Seconds within which every worker has heard what a job was told: it asks twice a second.
HEARD = 1.5
#: Crashes after which an item is failed.
MAX_CRASHES = 3
#: Seconds for which a message waits that came to a worker without its actor, while another has it.
POSTPONED = 1.0
#: Seconds without a word from its submitter after which a submission is taken to have broken off.
SUBMISSION_LEASE = 45.0
#: Beyond every item.
LAST_ITEM = 2**31 - 1


def record(conn: Conn, events: Iterable[Event], now: float) -> list[Control]:
    """Record how attempts ended; returns the jobs touched. `now` is the monotonic time that `Event.ended` is against.

    At most one event an item. An event that is stale or repeated changes nothing.
    """
    ordered = sorted(events, key=lambda e: (e.job, e.item))
    rows = conn.execute(statement("record"), _record_parameters(ordered, now))
    return [Control(*row) for row in rows]


def _record_parameters(events: Sequence[Event], now: float) -> dict[str, Any]:
    children = [(e, child) for e in events for child in e.children]
    ran = [e for e in events if e.ran]
    return {
        "job": _plain(e.job for e in events),
        "item": _plain(e.item for e in events),
        "attempt": _plain(e.attempt for e in events),
        "state": _plain(e.state for e in events),
        "elapsed": _plain(e.elapsed for e in events),
        "age": _plain(now - e.ended for e in events),
        "worker": _plain(e.worker for e in events),
        "crashed": _flags([e.crashed for e in events]),
        "dead": _flags([e.dead for e in events]),
        "result": _texts([e.result for e in events]),
        **_failure_parameters([e.failure for e in events]),
        **_retry_parameters([e.retry for e in events]),
        "child_job": [c.job for _, c in children],
        "parent_job": [e.job for e, _ in children],
        "parent": [e.item for e, _ in children],
        "child_actor": [c.actor for _, c in children],
        "child_queue": [c.queue for _, c in children],
        "child_message_id": [c.message_id for _, c in children],
        "child_args": [c.args for _, c in children],
        "child_options": [c.options for _, c in children],
        "child_sent_ms": [c.sent_ms for _, c in children],
        "child_delay": [c.delay for _, c in children],
        "ran_job": [e.job for e in ran],
        "ran_item": [e.item for e in ran],
        "ran_worker": [e.worker for e in ran],
    }


def _failure_parameters(failures: Sequence[Failure | None]) -> dict[str, str]:
    return {
        "kind": _texts([None if f is None else f.kind for f in failures]),
        "error_type": _texts([None if f is None else f.error_type for f in failures]),
        "place": _texts([None if f is None else f.place for f in failures]),
        "message": _texts([None if f is None else f.message for f in failures]),
        "traceback": _texts([None if f is None else f.traceback for f in failures]),
        "traceback_size": _texts([None if f is None else str(f.size) for f in failures]),
    }


def _retry_parameters(retries: Sequence[Retry | None]) -> dict[str, Any]:
    if not any(retries):
        return {"retry_delay": "{}", "retry_options": "{}", "retry_sent_ms": "{}"}
    return {
        "retry_delay": [r and r.delay for r in retries],
        "retry_options": [r and r.options for r in retries],
        "retry_sent_ms": [r and r.sent_ms for r in retries],
    }


def _plain(values: Iterable[int | float | str]) -> str:
    """An array of numbers or names as PostgreSQL reads it: nothing in it needs quoting, and psycopg would look at each
    element of a list.
    """
    return "{" + ",".join(map(str, values)) + "}"


def _flags(values: Sequence[bool]) -> str:
    """An array of 0 and 1; an empty one when all are 0."""
    return _plain(map(int, values)) if any(values) else "{}"


def _texts(values: Sequence[str | None]) -> str:
    """An array of texts as PostgreSQL reads it; an empty one when there is none."""
    if not any(value is not None for value in values):
        return "{}"
    return "{" + ",".join("NULL" if value is None else _quoted(value) for value in values) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def claim_item(conn: Conn, job: int, item: int, attempt: int, worker: int) -> Claim | None:
    """Ask whether `worker` may run a suspect message's item; None when the database has no such item."""
    row = conn.execute(
        statement("claim_item"),
        {"job": job, "item": item, "attempt": attempt, "worker": worker},
    ).fetchone()
    return Claim(*row) if row else None


def give_back(conn: Conn, job: int, item: int, worker: int) -> None:
    """Take back a claim: the item waits for its turn."""
    conn.execute(statement("give_back"), {"job": job, "item": item, "worker": worker})


def postpone(conn: Conn, job: int, item: int, attempt: int, actor: str) -> bool:
    """Have a message whose actor its worker lacks wait for one that has it; False when no worker ever had it."""
    row = conn.execute(
        statement("postpone"),
        {
            "job": job, "item": item, "attempt": attempt, "actor": actor, "delay": POSTPONED,
            "dead_after": DEAD_AFTER,
        },
    ).fetchone()  # fmt: skip
    return bool(row and row[0])


def wake_postponed(conn: Conn) -> None:
    """Have those sent that waited for a worker with their actor, now that there is one."""
    conn.execute(statement("wake_postponed"), {"dead_after": DEAD_AFTER})


def report_running(conn: Conn, worker: int, running: Sequence[Running]) -> None:
    """Give items that have been in hand for a while their row in `running`, or move its step and progress."""
    progress = [r.progress or (None, None) for r in running]
    conn.execute(
        statement("report_running"),
        {
            "worker": worker,
            "job": [r.job for r in running],
            "item": [r.item for r in running],
            "attempt": [r.attempt for r in running],
            "age": [r.age for r in running],
            "step": [r.step for r in running],
            "done": [done for done, _ in progress],
            "total": [total for _, total in progress],
        },
    )


def report_stacks(conn: Conn, worker: int, stacks: Sequence[Stack]) -> None:
    """Note where attempts hang that have a row in `running`."""
    conn.execute(
        statement("report_stacks"),
        {
            "worker": worker,
            "job": [s.job for s in stacks],
            "item": [s.item for s in stacks],
            "attempt": [s.attempt for s in stacks],
            "place": [s.place for s in stacks],
            "stack": [s.text for s in stacks],
        },
    )


def touch_jobs(conn: Conn, steps: dict[int, str | None]) -> None:
    """Note that items of these jobs started, with what they last said they are doing (None: nothing)."""
    conn.execute(statement("touch_jobs"), {"job": list(steps), "step": list(steps.values())})


def job_controls(conn: Conn, within: float | None = None) -> list[Control]:
    """What jobs were told within so many seconds; None: all that may still have messages in RabbitMQ."""
    return [Control(*row) for row in conn.execute(statement("job_controls"), {"within": within})]


def park(conn: Conn, messages: Iterable[tuple[int, int, int]]) -> None:
    """Messages of paused jobs, (job, item, attempt), leave RabbitMQ, to be published again when their job goes on."""
    ordered = sorted(set(messages))
    parameters = {
        "job": [job for job, _, _ in ordered],
        "item": [item for _, item, _ in ordered],
        "attempt": [attempt for _, _, attempt in ordered],
    }
    with conn.transaction():
        conn.execute(statement("lock_parked"), parameters)
        conn.execute(statement("park"), parameters)


def stop_job(conn: Conn, job: int, state: str, reason: str | None) -> bool:
    """Start nothing more of a job: it will be in this state when what is in hand has ended; False when it is stopped
    or over already.
    """
    told = {"job": job, "state": state, "reason": reason}
    return conn.execute(statement("stop_job"), told).fetchone() is not None


def note_action(conn: Conn, job: int, action: str, *, who: str, via: str, detail: dict[str, Any]) -> None:
    """Keep in a job's history who did what, in the transaction that does it."""
    noted = {"job": job, "action": action, "who": who, "via": via, "detail": Jsonb(detail)}
    conn.execute(statement("note_action"), noted)


def stop_late(conn: Conn) -> list[int]:
    """Stop the jobs whose deadline passed; returns them."""
    return [row[0] for row in conn.execute(statement("stop_late"))]


def close_stopped(conn: Conn) -> list[int]:
    """Close the jobs that are being stopped and have nothing in hand any more; returns them."""
    parameters = {"heard": HEARD, "dead_after": DEAD_AFTER}
    return [row[0] for row in conn.execute(statement("close_stopped"), parameters)]


def register_worker(conn: Conn, info: WorkerInfo) -> int:
    """A worker process starts; returns its id."""
    actors = sorted(info.actors)
    queues = [info.actors[name] for name in actors]
    conn.execute(statement("announce_actors"), (actors, queues))
    row = conn.execute(
        statement("register_worker"),
        {
            "host": info.host, "pid": info.pid, "threads": info.threads, "release": info.release,
            "actors": actors, "queues": sorted(set(queues)),
        },
    ).fetchone()  # fmt: skip
    return int(_the(row)[0])


def beat(conn: Conn, worker: int, holds: Sequence[tuple[int, int]], trouble: str | None = None) -> None:
    """A worker lives, holds these (job, item), and has this trouble with its broker."""
    flat = [number for pair in holds for number in pair]
    parameters = {"worker": worker, "held": len(holds), "holds": flat, "trouble": trouble}
    conn.execute(statement("beat"), parameters)


def stop_worker(conn: Conn, worker: int) -> None:
    """A worker says goodbye."""
    conn.execute(statement("stop_worker"), (worker,))


def dead_workers(conn: Conn) -> list[int]:
    """Workers to bury."""
    return [row[0] for row in conn.execute(statement("dead_workers"), {"limit": DEAD_AFTER})]


def declare_dead(conn: Conn, worker: int) -> bool:
    """Take a worker for dead; False when it lives. To be called in the burial's transaction."""
    row = conn.execute(statement("declare_dead"), {"worker": worker, "limit": DEAD_AFTER}).fetchone()
    return row is not None


def held_by(conn: Conn, worker: int) -> list[tuple[int, int, int, int, float]]:
    """What a dead worker held: (job, item, attempt, crashes, seconds in hand), in order of key."""
    return list(conn.execute(statement("held_by"), (worker,)))


def standing_job(conn: Conn, actor: str, queue: str) -> int:
    """The job of the day of an actor's plain sends."""
    row = conn.execute(statement("standing_job"), {"actor": actor, "queue": queue}).fetchone()
    # Another transaction may insert it between this statement's two halves; it is there for the next look.
    return int(row[0]) if row else standing_job(conn, actor, queue)


def lock_jobs(conn: Conn, jobs: Iterable[int]) -> dict[int, tuple[int, bool]]:
    """Lock jobs that are about to get items: {job: (total, takes items)}."""
    return {row[0]: (row[1], row[2]) for row in conn.execute(statement("lock_jobs"), (sorted(set(jobs)),))}


def items_by_key(conn: Conn, keys: Sequence[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Which of these (job, item key) exist, and their items."""
    rows = conn.execute(statement("items_by_key"), {"job": [k[0] for k in keys], "key": [k[1] for k in keys]})
    return {(row[0], row[1]): row[2] for row in rows}


def earlier_items(conn: Conn, keys: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Which of these (actor, item key) are in a standing job of a day before: {item key: (job, item)}."""
    parameters = {"actor": [actor for actor, _ in keys], "key": [key for _, key in keys]}
    return {row[0]: (row[1], row[2]) for row in conn.execute(statement("earlier_items"), parameters)}


def recount_jobs(conn: Conn, jobs: Sequence[int]) -> None:
    """Count anew what these jobs say of their items; they are locked."""
    conn.execute(statement("recount_jobs"), (list(jobs),))


def add_items(
    conn: Conn, new: Sequence[tuple[int, NewItem]], *, publishing: bool
) -> dict[tuple[int, int], int]:
    """Store items under the numbers given; returns the outbox ids {(job, item): id} of those that their sender is to
    publish, and holds the claim of: with `publishing` those that neither wait for their time nor for their job's turn.
    """
    rows = conn.execute(
        statement("add_items"),
        {
            "job": [n.job for _, n in new],
            "item": [number for number, _ in new],
            "actor": [n.actor for _, n in new],
            "queue": [n.queue for _, n in new],
            "message_id": [n.message_id for _, n in new],
            "args": [n.args for _, n in new],
            "options": [n.options for _, n in new],
            "sent_ms": [n.sent_ms for _, n in new],
            "delay": [n.delay for _, n in new],
            "key": [n.key for _, n in new],
            "published": [n.published for _, n in new],
            "publishing": publishing,
            "lease": PUBLISH_LEASE,
        },
    )
    return {(job, item): outbox for job, item, outbox, claimed in rows if claimed}


def create_job(
    conn: Conn, *, name: str, key: str | None, tenant: str, actor: str | None, queue: str | None,
    metadata: dict[str, Any], created_by: str | None, limits: Limits = NO_LIMITS, targets: Targets = NO_TARGETS,
    chunk: int = 1,
) -> Submission:  # fmt: skip
    """A new job, or the one that has this key already; its submission goes on from now."""
    parameters = {
        "name": name, "key": key, "tenant": tenant, "actor": actor, "queue": queue,
        "metadata": Jsonb(metadata), "created_by": created_by, "lease": SUBMISSION_LEASE, "chunk": chunk,
        "callbacks": (words := targets.words()) and Jsonb(words), "limits": Jsonb(limits.words()), **limits.columns(),
    }  # fmt: skip
    row = conn.execute(statement("create_job"), parameters).fetchone()
    # As in standing_job: lost to a transaction that commits between the two halves.
    return Submission(*row) if row else Submission(*_again(conn, parameters))


def _again(conn: Conn, parameters: dict[str, Any]) -> tuple[Any, ...]:
    return _the(conn.execute(statement("create_job"), parameters).fetchone())


def _the(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    if row is None:
        raise RuntimeError("the database gave no row where there must be one; was a row deleted by hand?")
    return row


def store_chunk(
    conn: Conn, job: int, start: int, chunk: Sequence[tuple[bytes, str | None]], *, keyed: bool
) -> tuple[str, int]:
    """Store inputs number `start` and on, each (args, item key), if that is where the submission stands.

    Returns ("stored", items stored), ("elsewhere", inputs consumed) when another submission of the same key got ahead,
    ("sealed", inputs consumed), ("stopped", inputs consumed), or ("deleted", `start`). All or nothing.
    """
    with conn.transaction():
        found = conn.execute(statement("lock_submission"), (job,)).fetchone()
        if found is None:
            return "deleted", start
        total, consumed, sealed, stopped = found
        if sealed or stopped or consumed != start:
            return ("sealed" if sealed else "stopped" if stopped else "elsewhere"), consumed
        stored = _copy_keyed(conn, job, total, chunk) if keyed else _copy(conn, job, total, chunk)
        conn.execute(statement("grow_job"), {"job": job, "stored": stored, "read": len(chunk)})
        return "stored", stored


def _copy(conn: Conn, job: int, total: int, chunk: Sequence[tuple[bytes, str | None]]) -> int:
    with conn.cursor().copy(statement("copy_items")) as copy:
        copy.set_types(["int8", "int4", "bytea"])
        for item, (args, _) in enumerate(chunk, total):
            copy.write_row((job, item, args))
    return len(chunk)


def _copy_keyed(conn: Conn, job: int, total: int, chunk: Sequence[tuple[bytes, str | None]]) -> int:
    conn.execute(statement("stage_table"))
    with conn.cursor().copy(statement("copy_stage")) as copy:
        copy.set_types(["int4", "text", "bytea"])
        for line, (args, key) in enumerate(chunk):
            copy.write_row((line, key, args))
    return conn.execute(statement("unstage"), {"job": job, "total": total}).rowcount


def seal_job(conn: Conn, job: int) -> bool:
    """No more items come from outside; False when the job was sealed or stopped before."""
    return conn.execute(statement("seal_job"), (job,)).fetchone() is not None


def break_job(conn: Conn, job: int, reason: str) -> None:
    """Stop a job whose submission broke off and can't be taken up again."""
    conn.execute(statement("break_job"), (reason, job))


def keep_submitting(conn: Conn, jobs: Iterable[int]) -> None:
    """The submissions of these jobs are still going on."""
    conn.execute(statement("keep_submitting"), {"jobs": list(jobs), "lease": SUBMISSION_LEASE})


def break_abandoned(conn: Conn) -> list[int]:
    """Stop the jobs whose submitter is gone and that nobody can take up again; returns them."""
    return [row[0] for row in conn.execute(statement("break_abandoned"))]


def known_actor(conn: Conn, name: str) -> str | None:
    """The queue of an actor that some worker announced."""
    row = conn.execute(statement("known_actor"), (name,)).fetchone()
    return row[0] if row else None


def claim_bulk(
    conn: Conn, *, full: Sequence[str] = (), passed: Sequence[int] = (), job: int | None = None
) -> BulkClaim | None:
    """Claim the next job (or `job`) with something to publish in its turn, but none of `passed` and of full queues."""
    row = conn.execute(
        statement("claim_bulk"),
        {
            "full": list(full), "passed": list(passed), "job": job, "lease": PUBLISH_LEASE, "window": WINDOW,
            "dead_after": DEAD_AFTER,
        },
    ).fetchone()  # fmt: skip
    return BulkClaim(*row) if row else None


def claim_redo(conn: Conn, claim: BulkClaim, limit: int) -> list[Outgoing]:
    """Claim messages that are published in the turn of a claimed job."""
    parameters = {"job": claim.job, "limit": limit, "lease": PUBLISH_LEASE, "limited": claim.limited}
    return [Outgoing(*row) for row in conn.execute(statement("claim_redo"), parameters)]


def bulk_items(conn: Conn, claim: BulkClaim, start: int, end: int) -> list[Outgoing]:
    """The messages of a claimed job's bulk items from `start` up to and without `end`."""
    return [
        Outgoing(
            claim.job, item, attempt, claim.epoch, item < claim.suspect_below, claim.actor, claim.queue,
            f"{claim.job}-{item}", args, options, None,
        )
        for item, attempt, args, options in conn.execute(statement("bulk_items"), (claim.job, start, end))
    ]  # fmt: skip


def publish_bulk(
    conn: Conn, claim: BulkClaim, *, watermark: int, published: int, suspect_below: int = 0, keep: bool,
    unserved: bool = False,
) -> bool:  # fmt: skip
    """Move the watermark; False when the claim was taken over, or the job was paused or stopped. `keep` renews the
    claim, else it is given back, and of a job that was `unserved`, its turn.
    """
    row = conn.execute(
        statement("publish_bulk"),
        {
            "job": claim.job, "token": claim.token, "watermark": watermark, "published": published,
            "suspect_below": suspect_below, "keep": keep, "lease": PUBLISH_LEASE, "unserved": unserved,
            "served_at": claim.served_at,
        },
    ).fetchone()  # fmt: skip
    return row is not None and bool(row[0])


def claim_outbox(conn: Conn, limit: int) -> list[Outgoing]:
    """Claim messages that are due."""
    return [
        Outgoing(*row)
        for row in conn.execute(statement("claim_outbox"), {"limit": limit, "lease": PUBLISH_LEASE})
    ]


def settle_outbox(conn: Conn, sent: Sequence[Outgoing]) -> None:
    """These messages of the outbox are confirmed."""
    conn.execute(statement("settle_outbox"), _rows_of(sent))


def release_outbox(conn: Conn, unsent: Sequence[Outgoing], *, pause: float = 0.0) -> None:
    """These messages of the outbox could not be published, or nobody knows; they are not due for `pause` seconds."""
    conn.execute(statement("release_outbox"), {**_rows_of(unsent), "pause": pause})


def _rows_of(messages: Sequence[Outgoing]) -> dict[str, Any]:
    return {"id": [m.outbox for m in messages], "attempt": [m.attempt for m in messages]}


def keep_lease(conn: Conn, name: str, holder: str, lease: float) -> bool:
    """Stay the one that does `name` for `lease` seconds more; False when that ended meanwhile."""
    row = conn.execute(statement("keep_lease"), {"name": name, "holder": holder, "lease": lease}).fetchone()
    return row is not None


def take_lease(conn: Conn, name: str, holder: str, lease: float) -> bool:
    """Become the one that does `name` for `lease` seconds."""
    row = conn.execute(statement("take_lease"), {"name": name, "holder": holder, "lease": lease}).fetchone()
    return row is not None


def drop_lease(conn: Conn, name: str, holder: str) -> None:
    """Let somebody else do it."""
    conn.execute(statement("drop_lease"), (name, holder))


def sealable_jobs(conn: Conn) -> list[int]:
    """Standing jobs whose day is over."""
    return [row[0] for row in conn.execute(statement("sealable_jobs"))]


def close_jobs(conn: Conn) -> list[int]:
    """Close what is done and nobody closed; returns the jobs."""
    return [row[0] for row in conn.execute(statement("close_jobs"))]


def drop_messages_of_stopped_jobs(conn: Conn) -> None:
    """What was to be published for jobs that are over never is."""
    conn.execute(statement("drop_messages_of_stopped_jobs"), (DROPPED,))


def analyze_grown(conn: Conn) -> None:
    """Have the plans of statements fit tables that have grown; nothing where none has."""
    conn.execute(statement("analyze_grown"))


def sample_jobs(conn: Conn) -> None:
    """A point for each open job that moved."""
    conn.execute(statement("sample_jobs"))


def jobs_out(conn: Conn, quiet: float) -> list[Out]:
    """Open jobs of which something is published and has no end."""
    return [Out(*row) for row in conn.execute(statement("jobs_out"), {"quiet": quiet})]


def unheld_items(
    conn: Conn, job: int, limit: int, *, low: int = 0, high: int = LAST_ITEM
) -> list[tuple[int, int, str]]:
    """Published open items from `low` up to and without `high` that nobody is known to hold: (item, attempt, queue)."""
    parameters = {"job": job, "low": low, "high": high, "limit": limit}
    return list(conn.execute(statement("unheld_items"), parameters))


def oldest_beat(conn: Conn) -> float | None:
    """Seconds since the live worker that has not beaten for longest did; None when none lives."""
    row = conn.execute(statement("oldest_beat")).fetchone()
    return row[0] if row else None


def mark_jobs(conn: Conn, limit: int) -> Mark | None:
    """What is yet to be published, as of now; None when no job is open."""
    rows = conn.execute(statement("mark_jobs"), {"window": WINDOW, "limit": limit}).fetchall()
    return Mark([(row[0], row[1], row[2]) for row in rows], rows[0][3]) if rows else None


def overtaken(conn: Conn, queue: str, mark: Mark) -> bool:
    """Whether a queue has given out what came into it after `mark`, and so everything that came before."""
    jobs, lows, totals = zip(*mark.jobs, strict=True)
    parameters = {
        "queue": queue, "job": list(jobs), "low": list(lows), "total": list(totals), "last": mark.last,
    }  # fmt: skip
    row = conn.execute(statement("overtaken"), parameters).fetchone()
    return row is not None and bool(row[0])


def republish(conn: Conn, job: int, items: Sequence[tuple[int, int]], holder: str | None = None) -> int:
    """Send lost items, (item, attempt), again, if `holder` still has the lease; returns how many needed it."""
    parameters = {
        "job": job,
        "item": [i[0] for i in items],
        "attempt": [i[1] for i in items],
        "holder": holder,
    }
    return conn.execute(statement("republish"), parameters).rowcount
