"""Worker processes: registration, heartbeats, deaths, and the items that a dead worker held."""

from collections.abc import Iterable, Mapping, Sequence

from psycopg.types.json import Jsonb

from callboard.sql.arrays import parameters
from callboard.sql.migrate import newest_migration
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import DueWork, Failure, Held, JobControl, Running, WorkerInfo
from callboard.sql.signature import Signature
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_one, fetch_value, gives_row, lists, required
from callboard.sql.writes.outcomes import report_running


def register_worker(conn: Conn, info: WorkerInfo) -> int:
    """Register a starting worker process; return its id. Raises LockNotAvailable."""
    announced = _announce(conn, info.actors, info.signatures)
    number: int = fetch_value(
        conn, "register_worker", host=info.host, pid=info.pid, threads=info.threads, release=info.release,
        broker=info.broker, **announced,
    )  # fmt: skip
    return number


def add_actors(conn: Conn, worker: int, actors: Mapping[str, str], signatures: Mapping[str, Signature]) -> None:
    """Record more actors ({name: queue}) of a worker, which were declared after its start.

    Raises LockNotAvailable.
    """
    execute(conn, "add_actors", worker=worker, **_announce(conn, actors, signatures))


def _announce(conn: Conn, queues: Mapping[str, str], signatures: Mapping[str, Signature]) -> dict[str, list[str]]:
    names = sorted(queues)
    known = [found and Jsonb(found.as_json()) for found in map(signatures.get, names)]
    execute(conn, "announce_actors", actors=names, queues=[queues[name] for name in names], signatures=known)
    return {"actors": names, "queues": sorted(set(queues.values()))}


def other_brokers(conn: Conn, worker: int) -> list[tuple[int, str, str]]:
    """Return (id, host, broker) of a live worker on each other broker, among those that registered before this one."""
    return execute(conn, "other_brokers", worker=worker).fetchall()


def worker_elsewhere(conn: Conn, broker: str) -> tuple[str, str] | None:
    """Return (host, broker) of a live worker on another broker than this; None when there is none."""
    return execute(conn, "worker_elsewhere", broker=broker).fetchone()


def beat(
    conn: Conn, worker: int, holds: Sequence[tuple[int, int]] | None, trouble: str | None = None,
    info: WorkerInfo | None = None,
) -> DueWork:  # fmt: skip
    """Record a heartbeat, and return the due work. `holds`: the (job, item) pairs that the worker holds; None: record
    nothing. `trouble`: why it can't publish (None: it can). `info`: the values that the worker registered, by which its
    row is checked (None: not checked).
    """
    found = fetch_one(
        conn, DueWork, "beat", worker=worker, beats=holds is not None, **lists("jobs items", holds or ()),
        trouble=trouble, session=conn.info.backend_pid, newest=newest_migration(), pid=info and info.pid,
        host=info and info.host,
    )  # fmt: skip
    return required(found)


def report_means(conn: Conn, means: Mapping[str, float]) -> None:
    """Record the mean seconds of attempts, by actor."""
    execute(conn, "report_means", **lists("actors seconds", means.items()))


def exclude_tests(conn: Conn) -> bool:
    """Become the only test worker of this database until `conn` is closed; return False while there is another."""
    return bool(fetch_value(conn, "exclude_tests"))


def stop_worker(conn: Conn, worker: int) -> None:
    """Record that a worker stops."""
    execute(conn, "stop_worker", worker=worker)


def schema_id(conn: Conn) -> str:
    """Return digits that identify the schema of this database."""
    return str(fetch_value(conn, "schema_id"))


def note_death(conn: Conn, worker: int, pid: int, running: Sequence[Running]) -> bool | None:
    """Record that a worker's process is dead, and the attempts that it was running. Returns whether that was not yet
    known; None if there is no such worker, or it had stopped. Raises LockNotAvailable.
    """
    with transaction(conn):
        newly: bool | None = fetch_value(conn, "note_death", worker=worker, pid=pid)
        if newly is not None and running:
            report_running(conn, worker, running)
        return newly


def keep_deaths(conn: Conn, worker: int, ran: Sequence[Running], why: Failure) -> int:
    """Record the worker's death in the history of items that it was running, and that have succeeded elsewhere since.
    Returns how many of its items are still open.
    """
    found: int = fetch_value(
        conn, "keep_deaths", worker=worker, kind=why.kind, error_type=why.error_type, pattern=why.pattern,
        message=why.message, **parameters(Running, ran),
    )  # fmt: skip
    return found


def dead_workers(conn: Conn) -> list[int]:
    """Return the workers whose heartbeat stopped, and ended workers with rows in `running`."""
    return fetch_ids(conn, "dead_workers")


def declare_dead(conn: Conn, worker: int) -> bool:
    """Mark a worker as dead, in the transaction that requeues its items; return False when it is alive."""
    return gives_row(conn, "declare_dead", worker=worker)


def running_rows(conn: Conn, worker: int) -> list[Held]:
    """Return a worker's rows in `running`, ordered by key."""
    return fetch(conn, Held, "running_rows", worker=worker)


def save_crash_limits(conn: Conn, worker: int, limits: Iterable[tuple[int, int, int]]) -> None:
    """Store the crash limits of items that a dead worker held, (job, item, limit): the number of crashes at which the
    item fails; 0: the crash is not charged to it.
    """
    execute(conn, "save_crash_limits", worker=worker, **lists("job item crash_limit", limits))


def job_controls(conn: Conn, within: float | None = None) -> list[JobControl]:
    """Return the control states of jobs changed `within` so many seconds; None: of all that may have messages left."""
    return fetch(conn, JobControl, "job_controls", within=within)
