"""Worker processes: registration, heartbeats, deaths, and what a dead worker held."""

from collections.abc import Mapping, Sequence

from psycopg.types.json import Jsonb

from callboard.sql.pool import Conn
from callboard.sql.rows import DueWork, JobControl, WorkerInfo
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_one, fetch_value, gives_row, lists, required


def register_worker(conn: Conn, info: WorkerInfo) -> int:
    """Register a worker process that starts; return its id."""
    actors = sorted(info.actors)
    queues = [info.actors[name] for name in actors]
    signatures = [known and Jsonb(known.as_json()) for known in map(info.signatures.get, actors)]
    execute(conn, "announce_actors", actors=actors, queues=queues, signatures=signatures)
    number: int = fetch_value(
        conn, "register_worker", host=info.host, pid=info.pid, threads=info.threads, release=info.release,
        actors=actors, queues=sorted(set(queues)), broker=info.broker,
    )  # fmt: skip
    return number


def other_brokers(conn: Conn, worker: int) -> list[tuple[int, str, str]]:
    """Return (id, host, broker) for each other broker of workers that live and registered before this one."""
    return execute(conn, "other_brokers", worker=worker).fetchall()


def beat(conn: Conn, worker: int, holds: Sequence[tuple[int, int]] | None, trouble: str | None = None) -> DueWork:
    """Record a heartbeat: the (job, item) that the worker holds, and what keeps it from publishing (None: nothing).
    With None for `holds`, record nothing. Return what there is to do.
    """
    found = fetch_one(
        conn, DueWork, "beat", worker=worker, beats=holds is not None, **lists("jobs items", holds or ()),
        trouble=trouble, session=conn.info.backend_pid,
    )  # fmt: skip
    return required(found)


def report_means(conn: Conn, means: Mapping[str, float]) -> None:
    """Record the mean seconds of attempts, by actor."""
    execute(conn, "report_means", **lists("actors seconds", means.items()))


def stop_worker(conn: Conn, worker: int) -> None:
    """Record that a worker stops."""
    execute(conn, "stop_worker", worker=worker)


def dead_workers(conn: Conn) -> list[int]:
    """Return the workers whose heartbeat stopped, or that ended and left rows in `running`."""
    return fetch_ids(conn, "dead_workers")


def declare_dead(conn: Conn, worker: int) -> bool:
    """Mark a worker as dead, in the transaction that rescues its items; return False when it lives."""
    return gives_row(conn, "declare_dead", worker=worker)


def running_rows(conn: Conn, worker: int) -> list[tuple[int, int, int, int, float]]:
    """Return a worker's rows in `running`: (job, item, attempt, crashes, seconds since its start), in order of key."""
    return execute(conn, "running_rows", worker=worker).fetchall()


def job_controls(conn: Conn, within: float | None = None) -> list[JobControl]:
    """Return the controls of jobs changed `within` so many seconds; None: of all that may have messages in RabbitMQ."""
    return fetch(conn, JobControl, "job_controls", within=within)
