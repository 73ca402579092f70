"""A database, a virtual host, a client and a worker process that many tests share, and questions to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dramatiq
import pika
import psycopg

import callboard
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from tests.support.clients import client
from tests.support.databases import database, with_database
from tests.support.vhosts import Broker
from tests.support.workers import Worker, wait_until

ACTORS = "tests.support.pipeline_actors"
TIMEOUT = 300.0


@dataclass
class Pipeline:
    """A database, a broker and a worker process, which the tests of a module share."""

    environment: dict[str, str]
    conn: Conn
    broker: dramatiq.Broker
    worker: Worker | None = None

    def drift(self) -> list[Any]:
        return list(queries.run(self.conn, queries.verify())["drift"])

    def actor(self, name: str) -> dramatiq.Actor[..., Any]:
        return self.broker.get_actor(name)

    def submit(self, actor: str, *items: Any, **options: Any) -> callboard.Job:
        """A job of these items."""
        return callboard.submit(actor, items, **options)

    def ended(self, job: callboard.Job) -> list[dict[str, Any]]:
        """Its items, when it is completed."""
        status = job.wait(TIMEOUT)
        assert status["state"] == "completed", status
        return list(job.items())

    def only(self, job: callboard.Job) -> dict[str, Any]:
        """Its one item, when it is completed."""
        (item,) = self.ended(job)
        return item

    def attempts(self, job: callboard.Job, item: int = 0) -> list[dict[str, Any]]:
        return queries.run(self.conn, queries.attempts(job.id, item))

    def runs(self, job: int) -> list[tuple[int, int, str]]:
        """(item, attempt, what) of each run that was noted."""
        found = self.conn.execute("SELECT item, attempt, what FROM runs WHERE job = %s ORDER BY 1, 2, 3", (job,))
        return [(row[0], row[1], row[2]) for row in found]

    def sent_items(self, actor: str, state: str | None = None) -> list[dict[str, Any]]:
        """The items of an actor's plain sends, of all days: midnight (UTC) may come in the middle of a test."""
        jobs = "SELECT id FROM callboard.jobs WHERE actor = %s AND standing_on IS NOT NULL ORDER BY id"
        found = self.conn.execute(jobs, (actor,)).fetchall()
        return [item for (job,) in found for item in callboard.get(job).items(state=state)]

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A plain channel, as a foreign producer has it."""
        connection = pika.BlockingConnection(pika.URLParameters(self.environment["AMQP_URL"]))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def ready(self, queue: str) -> int:
        """Messages that lie ready in a queue."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)

    def has_consumer(self) -> bool:
        """Whether a worker consumes the queue, and so has declared it, with that of delays: it says that it is ready
        before.
        """
        try:
            with self.channel() as channel:
                return bool(channel.queue_declare("default", passive=True).method.consumer_count)
        except pika.exceptions.ChannelClosedByBroker:
            return False

    def dead_letter(self, wanted: Callable[[Any, bytes], bool], queue: str = "default") -> Any:
        """(properties, body) of the dead letter that is wanted; it is taken out, with those before it."""
        found: list[Any] = []

        def look() -> bool:
            with self.channel() as channel:
                while not found:
                    method, properties, body = channel.basic_get(f"{queue}.XQ")
                    if method is None:
                        return False
                    channel.basic_ack(method.delivery_tag)
                    if wanted(properties, body):
                        found.append((properties, body))
            return True

        assert wait_until(look, TIMEOUT, pause=0.1)
        return found[0]


@contextmanager
def running_pipeline(
    postgres_url: str, template: str, rabbitmq: Broker, actors: Sequence[str], folder: Path | None = None,
    modules: Sequence[str] = (ACTORS,), threads: int = 8, tables: str = "",
) -> Iterator[Pipeline]:  # fmt: skip
    """A pipeline of its own, with `tables` of the app; with a `folder` for its log, a worker process runs in it."""
    with ExitStack() as stack:
        name = stack.enter_context(database(postgres_url, template))
        url = with_database(postgres_url, name)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CREATE TABLE runs (job bigint, item int, attempt int, what text)")
            conn.execute(tables.encode())
        environment = {"DATABASE_URL": url, "AMQP_URL": stack.enter_context(rabbitmq.vhost())}
        worker = None
        if folder is not None:
            worker = Worker(modules, folder / "worker.log", env=environment, threads=threads)
            stack.callback(worker.kill)
            worker.start()
        broker = stack.enter_context(client(environment, actors))
        made = Pipeline(environment, stack.enter_context(connect(url)), broker, worker)
        # RabbitMQ drops what a foreign producer sends to a queue that is not there yet.
        assert worker is None or wait_until(made.has_consumer, TIMEOUT)
        yield made
