"""Services and workers of the benchmarks."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pika
import psycopg

from callboard.commands.services import Node, Server
from callboard.sql.migrate import migrate
from callboard.sql.rows import WorkerInfo
from callboard.sql.writes import workers
from tests.support.workers import Worker

PREFETCH = "400"


class Rig(NamedTuple):
    """Where things run."""

    folder: Path
    amqp_url: str
    database_url: str

    @property
    def environment(self) -> dict[str, str]:
        """Of every process that is measured; all of a job may lie in RabbitMQ, as it does on the untracked side."""
        return {"AMQP_URL": self.amqp_url, "DATABASE_URL": self.database_url, "CALLBOARD_QUEUE_DEPTH": "100000000"}

    def run(self, code: str, **extra: str) -> str:
        """What a Python program prints."""
        environment = {**os.environ, **self.environment, **extra}
        done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def worker(self, module: str, processes: int, **extra: str) -> Worker:
        """A worker of 8 threads a process, ready."""
        prefetch = {"dramatiq_queue_prefetch": PREFETCH} if "stock" in module else {}
        environment = self.environment | prefetch | extra
        log = self.folder / "worker.log"
        return Worker([f"tests.bench.{module}"], log, env=environment, processes=processes)

    @contextmanager
    def announced(self, actor: str, threads: int, mean_seconds: float | None = None) -> Iterator[None]:
        """In its block publishers take it that a worker lives which has the actor: one comes when all is published.
        `mean_seconds`: what its items have taken; None: what workers have told.
        """
        with psycopg.connect(self.database_url, autocommit=True) as conn:
            info = WorkerInfo("announced", 1, threads, "", {actor: "default"})
            worker = workers.register_worker(conn, info)
            conn.execute("UPDATE callboard.workers SET beat_at = now() + interval '1 h' WHERE id = %s", (worker,))
            told = "UPDATE callboard.actors SET mean_seconds = coalesce(%s, mean_seconds) WHERE name = %s"
            conn.execute(told, (mean_seconds, actor))
            yield
            workers.stop_worker(conn, worker)

    @contextmanager
    def queue(self) -> Iterator["pika.adapters.blocking_connection.BlockingChannel"]:
        """A channel to ask RabbitMQ by."""
        connection = pika.BlockingConnection(pika.URLParameters(self.amqp_url))
        yield connection.channel()
        connection.close()

    def job(self, number: int) -> tuple[str, float]:
        """A job's state, and the seconds between the starts of its first item and the end of its last."""
        with psycopg.connect(self.database_url) as conn:
            row = conn.execute(
                "SELECT j.state::text, coalesce(extract(epoch FROM j.finished_at - min(i.started_at))::float8, 0)"
                " FROM callboard.jobs AS j LEFT JOIN callboard.items AS i ON i.job_id = j.id AND j.state = 'completed'"
                " WHERE j.id = %s GROUP BY j.id",
                (number,),
            ).fetchone()
        if row is None:
            raise LookupError(number)
        return row[0], row[1]


@contextmanager
def rig() -> Iterator[Rig]:
    """A private RabbitMQ and an embedded PostgreSQL, with fsync as in production."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Node(folder / "rabbitmq") as node, Server(folder / "postgres") as server:
            migrate(server.url)
            yield Rig(folder, node.url, server.url)
