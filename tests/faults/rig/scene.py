"""What a fault is played on: services that may be stopped and killed, workers that are started again, and the proof."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dramatiq
import pika
import psycopg

import callboard
from callboard.commands.services import Node, Server
from callboard.sql.pool import connect
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES
from tests.faults.rig.ledger import Ledger
from tests.faults.rig.witness import Witness
from tests.support.clients import client
from tests.support.workers import Worker, wait_until

ACTORS = "tests.faults.rig.actors"
NAMES = ("work", "serve", "leaves", "deadly", "hung", "parent", "limited", "uploads", "told", "summed")
TIMEOUT = 120.0


def fate(number: int) -> str:
    """5 % fail for good, 5 % succeed on a retry, 5 % are skipped."""
    return {0: "fail", 1: "retry", 2: "skip"}.get(number % 20, "succeed")


def mixed(count: int, seconds: float = 0.0) -> Iterator[dict[str, Any]]:
    """Items of `work`, of every fate."""
    return ({"number": n, "fate": fate(n), "seconds": seconds} for n in range(count))


@dataclass
class Scene:
    """See the module. `environment` is what workers and clients run in."""

    server: Server
    node: Node
    environment: dict[str, str]
    direct_url: str  # this test's database, by no proxy or pooler
    ledger: Ledger
    broker: dramatiq.Broker
    folder: Path
    workers: list[Worker] = field(default_factory=list)
    starts: int = 0

    # Workers ---------------------------------------------------------------------------------------------------------

    def worker(
        self, *, threads: int = 8, processes: int = 1, env: Mapping[str, str] | None = None,
        modules: Sequence[str] = (ACTORS,), arguments: Sequence[str] = (),
    ) -> Worker:  # fmt: skip
        """A `dramatiq` of its own that takes messages; ended with the test."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        environment = {**self.environment, **(env or {})}
        sizes = {"threads": threads, "processes": processes}
        made = Worker(modules, log, env=environment, arguments=arguments, **sizes)
        self.workers.append(made)
        self.starts += 1
        return made.start()

    def tend(self) -> int:
        """Start again, without waiting, what has ended: what a supervisor does. How many it were."""
        ended = [worker for worker in self.workers if not worker.process.running()]
        for worker in ended:
            worker.process.kill()  # what is left of its group
            worker.begin()
        self.starts += len(ended)
        return len(ended)

    # Jobs ------------------------------------------------------------------------------------------------------------

    def submit(self, actor: str, items: Any, **options: Any) -> callboard.Job:
        """A job of these items."""
        return callboard.submit(actor, items, **options)

    def status(self, job: callboard.Job) -> dict[str, Any]:
        """The job, read without the client's pool, which a fault may have broken."""
        with connect(self.direct_url) as conn:
            found = queries.run(conn, queries.job(job.id))
        assert found is not None
        return found

    def until(
        self, job: callboard.Job, condition: Callable[[dict[str, Any]], bool], timeout: float = TIMEOUT
    ) -> None:
        """Wait until a job's status is so; fails with the status."""

        def met() -> bool:
            self.tend()
            try:
                return condition(self.status(job))
            except psycopg.OperationalError:
                return False

        assert wait_until(met, timeout, pause=0.1), self.status(job)

    def witness(self, job: callboard.Job, *, reopened: bool = False) -> Witness:
        """Watch a job's identity for the length of a block; `prove` asks what it saw."""
        return Witness(self.direct_url, job.id, reopened=reopened)

    def prove(
        self, job: callboard.Job, *, total: int, failed: int = 0, skipped: int = 0, retries: int | None = None,
        witness: Witness | None = None, timeout: float = TIMEOUT,
    ) -> Counter[int]:  # fmt: skip
        """The job completes with exactly these counts, nothing drifts and nothing is left over; every item really ran.

        How often each ran.
        """
        self.until(job, lambda status: status["finished_at"] is not None, timeout)
        status = self.status(job)
        assert status["state"] == "completed", status
        assert sum(status[name] for name in ITEM_STATES) == total, status
        found = {name: status[name] for name in ("total", "succeeded", "failed", "skipped")}
        wanted = {"total": total, "succeeded": total - failed - skipped, "failed": failed, "skipped": skipped}
        assert found == wanted, status
        assert retries is None or status["retries"] == retries, status
        self.prove_true()
        assert self.left_over(job) == {"running": 0, "outbox": 0}
        if witness is not None:
            assert witness.wrong == []
            assert witness.readings > 0
        runs = self.ledger.runs(job.id)
        assert set(runs) == set(range(total)), sorted(set(range(total)) - set(runs))[:20]
        return runs

    def prove_mixed(self, job: callboard.Job, total: int, **more: Any) -> Counter[int]:
        """The same of a job of `mixed` items; a crash gives an item another attempt, so retries are at least these."""
        fates = Counter(fate(n) for n in range(total))
        runs = self.prove(job, total=total, failed=fates["fail"], skipped=fates["skip"], **more)
        assert self.status(job)["retries"] >= 2 * fates["fail"] + fates["retry"]
        return runs

    def prove_true(self) -> None:
        """Recounting finds what the counters say, of every job."""
        with connect(self.direct_url) as conn:
            assert queries.run(conn, queries.verify())["drift"] == []

    def left_over(self, job: callboard.Job) -> dict[str, int]:
        """Rows that a finished job has no use for, once the last have gone."""

        def rows() -> dict[str, int]:
            with connect(self.direct_url) as conn:
                found = conn.execute(
                    "SELECT (SELECT count(*) FROM callboard.running WHERE job_id = %(job)s),"
                    " (SELECT count(*) FROM callboard.outbox WHERE job_id = %(job)s)",
                    {"job": job.id},
                ).fetchone()
            return dict(zip(("running", "outbox"), found or (), strict=True))

        wait_until(lambda: not any(rows().values()), TIMEOUT, pause=0.2)
        return rows()

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What the record says, read directly, or nothing for statements that give no rows."""
        with connect(self.direct_url) as conn:
            done = conn.execute(statement, parameters or None)
            return list(done) if done.description else []

    # RabbitMQ --------------------------------------------------------------------------------------------------------

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A plain channel on this test's virtual host."""
        connection = pika.BlockingConnection(pika.URLParameters(self.environment["AMQP_URL"]))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def depth(self, queue: str = "default") -> int:
        """Messages that lie ready in a queue."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)

    def consumed(self, queue: str = "default") -> bool:
        """Whether a worker consumes a queue, and so has declared it: it says that it is ready before."""
        try:
            with self.channel() as channel:
                return bool(channel.queue_declare(queue, passive=True).method.consumer_count)
        except pika.exceptions.ChannelClosedByBroker:
            return False

    def lose(self, queue: str = "default", *, deleted: bool = False) -> int:
        """Purge a queue, or delete it, as soon as messages lie in it; how many were lost."""
        with self.channel() as channel:

            def ready() -> int:
                return int(channel.queue_declare(queue, passive=True).method.message_count)

            assert wait_until(ready, TIMEOUT, pause=0.0)
            done = channel.queue_delete(queue) if deleted else channel.queue_purge(queue)
            return int(done.method.message_count)

    def said(self) -> str:
        """All that the workers logged."""
        return "".join(worker.output for worker in self.workers)


@contextmanager
def scene(
    server: Server, node: Node, ledger: Ledger, environment: dict[str, str], direct_url: str, folder: Path
) -> Iterator[Scene]:
    """A scene with a client that has the actors' names; its workers end with it."""
    with ExitStack() as stack:
        broker = stack.enter_context(client(environment, NAMES))
        made = Scene(server, node, environment, direct_url, ledger, broker, folder)
        try:
            yield made
        finally:
            for worker in made.workers:
                worker.kill()


def seconds_since(moment: float) -> float:
    """How long ago that was, by the monotonic clock."""
    return time.monotonic() - moment
