"""Worker processes: registration, heartbeats, deaths, and what a dead worker held."""

from collections.abc import Mapping, Sequence

from psycopg.types.json import Jsonb

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import DueWork, JobControl, WorkerInfo
from callboard.sql.statements import required, statement


def register_worker(conn: Conn, info: WorkerInfo) -> int:
    """Register a worker process that starts; return its id."""
    actors = sorted(info.actors)
    queues = [info.actors[name] for name in actors]
    signatures = [known and Jsonb(known.as_json()) for known in map(info.signatures.get, actors)]
    conn.execute(statement("announce_actors"), (actors, queues, signatures))
    row = conn.execute(
        statement("register_worker"),
        {
            "host": info.host, "pid": info.pid, "threads": info.threads, "release": info.release,
            "actors": actors, "queues": sorted(set(queues)), "broker": info.broker,
        },
    ).fetchone()  # fmt: skip
    return int(required(row)[0])


def other_brokers(conn: Conn, worker: int) -> list[tuple[int, str, str]]:
    """Return (id, host, broker) for each other broker of workers that live and registered before this one."""
    parameters = {"worker": worker, "dead_after": timings.DEAD_AFTER_SECONDS}
    return conn.execute(statement("other_brokers"), parameters).fetchall()


def beat(conn: Conn, worker: int, holds: Sequence[tuple[int, int]] | None, trouble: str | None = None) -> DueWork:
    """Record a heartbeat: the (job, item) that the worker holds, and what keeps it from publishing (None: nothing).
    With None for `holds`, record nothing. Return what there is to do.
    """
    jobs, items = [job for job, _ in holds or ()], [item for _, item in holds or ()]
    parameters = {
        "worker": worker, "beats": holds is not None, "jobs": jobs, "items": items, "trouble": trouble,
        "session": conn.info.backend_pid, "soon": timings.SHARED_LOOK_SECONDS, "within": timings.CONTROLS_SECONDS,
        **timings.death(),
    }  # fmt: skip
    return DueWork(*required(conn.execute(statement("beat"), parameters).fetchone()))


def report_means(conn: Conn, means: Mapping[str, float]) -> None:
    """Record the mean seconds of attempts, by actor."""
    conn.execute(statement("report_means"), {"actors": list(means), "seconds": list(means.values())})


def stop_worker(conn: Conn, worker: int) -> None:
    """Record that a worker stops."""
    conn.execute(statement("stop_worker"), (worker,))


def dead_workers(conn: Conn) -> list[int]:
    """Return the workers whose heartbeat stopped, or that ended and left rows in `running`."""
    return [row[0] for row in conn.execute(statement("dead_workers"), timings.death())]


def declare_dead(conn: Conn, worker: int) -> bool:
    """Mark a worker as dead, in the transaction that rescues its items; return False when it lives."""
    row = conn.execute(statement("declare_dead"), {"worker": worker, **timings.death()}).fetchone()
    return row is not None


def running_rows(conn: Conn, worker: int) -> list[tuple[int, int, int, int, float]]:
    """Return a worker's rows in `running`: (job, item, attempt, crashes, seconds since its start), in order of key."""
    return list(conn.execute(statement("running_rows"), (worker,)))


def job_controls(conn: Conn, within: float | None = None) -> list[JobControl]:
    """Return the controls of jobs changed `within` so many seconds; None: of all that may have messages in RabbitMQ."""
    return [JobControl(*row) for row in conn.execute(statement("job_controls"), {"within": within})]
