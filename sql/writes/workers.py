"""Worker processes: registered, alive, dead, and what they hold."""

from collections.abc import Sequence

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import (
    JobControl,
    WorkerInfo,
)
from callboard.sql.statements import only, statement


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
    return int(only(row)[0])


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
    return [row[0] for row in conn.execute(statement("dead_workers"), {"limit": timings.DEAD_AFTER_SECONDS})]


def declare_dead(conn: Conn, worker: int) -> bool:
    """Take a worker for dead; False when it lives. To be called in the burial's transaction."""
    row = conn.execute(
        statement("declare_dead"), {"worker": worker, "limit": timings.DEAD_AFTER_SECONDS}
    ).fetchone()
    return row is not None


def running_rows(conn: Conn, worker: int) -> list[tuple[int, int, int, int, float]]:
    """What a dead worker held: (job, item, attempt, crashes, seconds in hand), in order of key."""
    return list(conn.execute(statement("running_rows"), (worker,)))


def job_controls(conn: Conn, within: float | None = None) -> list[JobControl]:
    """What jobs were told within so many seconds; None: all that may still have messages in RabbitMQ."""
    return [JobControl(*row) for row in conn.execute(statement("job_controls"), {"within": within})]
