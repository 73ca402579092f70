"""A test database, a virtual host, a client and workers that faults happen to, and the proof that jobs survive them."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dramatiq
import pika
import psycopg
from pika.exceptions import ChannelClosedByBroker

import callboard
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES
from tests.faults.rig import periods
from tests.faults.rig.job_watcher import JobWatcher, connect_to_look
from tests.faults.rig.kill_points import DEATHS, KILL_POINTS, MODULE, Death, deaths
from tests.faults.rig.run_log import RunLog
from tests.support.clients import client
from tests.support.workers import Worker, wait_until

ACTORS, BLAMELESS = "tests.faults.rig.actors", "tests.faults.rig.blameless"
NAMES = ("work", "serve", "leaves", "deadly", "hung", "parent", "limited", "uploads", "told", "summed", "saves")
#: Seconds within which everything happens that a test waits for.
TIMEOUT = 300.0
#: Seconds between two looks at what a test waits for.
POLL = 0.2
Result = TypeVar("Result")


def fate(number: int) -> str:
    """5 % fail for good, 5 % succeed on a retry, 5 % are skipped."""
    return {0: "fail", 1: "retry", 2: "skip"}.get(number % 20, "succeed")


def mixed(count: int, seconds: float = 0.0) -> Iterator[dict[str, Any]]:
    """Items of `work`, of every fate."""
    return ({"number": n, "fate": fate(n), "seconds": seconds} for n in range(count))


def gated(items: Iterable[dict[str, Any]], gate: Path, start: int) -> Iterator[dict[str, Any]]:
    """The items; from the one with this number on, each waits for the file `gate`.

    So the job still goes on when its fault comes, however slow the test is.
    """
    return ({**item, "gate": str(gate)} if item["number"] >= start else item for item in items)


@dataclass
class Scenario:
    """See the module. `environment` is that of workers and clients; `database_url` goes by no proxy or pooler."""

    environment: dict[str, str]
    database_url: str
    run_log: RunLog
    broker: dramatiq.Broker
    folder: Path
    workers: list[Worker] = field(default_factory=list)
    starts: int = 0
    _conn: Conn | None = None

    # Workers ---------------------------------------------------------------------------------------------------------

    def start_worker(
        self, *, threads: int = 8, processes: int = 1, env: Mapping[str, str] | None = None,
        modules: Sequence[str] = (ACTORS,), arguments: Sequence[str] = (), short_periods: float | None = None,
        kill_points: Sequence[str] = (),
    ) -> Worker:  # fmt: skip
        """A `dramatiq` of its own that takes messages; it ends with the test.

        The modules `periods` and `kill_points` say what the arguments of these names do.
        """
        log = self.folder / f"worker-{len(self.workers)}.log"
        environment = {**self.environment, **(env or {})}
        if short_periods is not None:
            environment[periods.SHORT_PERIODS], modules = str(short_periods), (*modules, periods.MODULE)
        if kill_points:
            self._deaths.mkdir(exist_ok=True)
            environment |= {KILL_POINTS: ",".join(kill_points), DEATHS: str(self._deaths)}
            modules = (*modules, MODULE, BLAMELESS)
        sizes = {"threads": threads, "processes": processes}
        made = Worker(modules, log, env=environment, arguments=arguments, **sizes)
        self.workers.append(made)
        self.starts += 1
        return made.start()

    def restart_ended_workers(self) -> int:
        """Start the workers that have ended again, without waiting, as a supervisor does; how many there were."""
        ended = [worker for worker in self.workers if not worker.process.running()]
        for worker in ended:
            worker.process.kill()  # the rest of its process group
            worker.begin()
        self.starts += len(ended)
        return len(ended)

    def call_dead(self, pid: int) -> None:
        """Have the next sweep take a worker for dead, as it does when that has been silent for long."""
        self.sql("UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE pid = %s", pid)

    def all_heard(self, job: callboard.Job) -> None:
        """Wait until every living worker has applied the latest action on a job: until each has beaten after it, so has
        asked what there is to hear, and has beaten once more, so is done with the answer.
        """
        for _ in range(2):
            ((after,),) = self.sql(
                "SELECT greatest(control_at, (SELECT max(beat_at) FROM callboard.workers)) FROM callboard.jobs"
                " WHERE id = %s",
                job.id,
            )
            beaten = "SELECT bool_and(beat_at > %s) FROM callboard.workers WHERE stopped_at IS NULL AND died_at IS NULL"
            assert wait_until(lambda: self.sql(beaten, after) == [(True,)], TIMEOUT, pause=POLL)

    def deaths(self) -> list[Death]:
        """The deaths so far of workers that were started with `kill_points`."""
        return deaths(self._deaths)

    def all_die(self, plan: Sequence[str], job: callboard.Job, more: Callable[[], Any]) -> list[callboard.Job]:
        """Wait until workers died at each of the `kill_points` of a plan; whenever a job is done before, submit `more`.
        The jobs.
        """
        jobs = [job]

        def died(_: dict[str, Any]) -> bool:
            if self.status(jobs[-1])["finished_at"] is not None:
                jobs.append(more())
            return len(self.deaths()) == len(plan)

        self.wait_for(job, died, 600)
        return jobs

    @property
    def _deaths(self) -> Path:
        return self.folder / "deaths"

    def log(self) -> str:
        """All that the workers logged."""
        return "".join(worker.output for worker in self.workers)

    # Jobs ------------------------------------------------------------------------------------------------------------

    def submit(self, actor: str, items: Any, **options: Any) -> callboard.Job:
        """A job of these items."""
        return callboard.submit(actor, items, **options)

    def status(self, job: callboard.Job) -> dict[str, Any]:
        """The job, read without the client's pool, which a fault may have broken."""
        found = self._ask(lambda conn: queries.run(conn, queries.job(job.id)))
        assert found is not None
        return found

    def wait_for(
        self, job: callboard.Job, condition: Callable[[dict[str, Any]], bool], timeout: float = TIMEOUT
    ) -> None:
        """Wait until the condition holds for the job's status; fails with the status. Restarts ended workers."""

        def holds() -> bool:
            self.restart_ended_workers()
            try:
                return condition(self.status(job))
            except psycopg.OperationalError:
                return False

        assert wait_until(holds, timeout, pause=POLL), self.status(job)

    def wait_at_gate(self, job: callboard.Job, start: int, threads: int) -> None:
        """Wait until all threads have items in hand that wait for a gate, as those from `start` on do. So
        items end after the fault that comes, whatever lies in the queue by then.
        """
        self.wait_for(job, lambda _: self._at_gate(job, start, threads))

    def wait_at_work(self, job: callboard.Job, count: int, start: int, threads: int) -> None:
        """Wait until more than `count` items succeeded; or until all threads wait for a gate, as the items from `start`
        on do: what a busy worker gave back lies behind these in the queue, and may be more than was to come.
        """
        self.wait_for(job, lambda status: status["succeeded"] > count or self._at_gate(job, start, threads))

    def _at_gate(self, job: callboard.Job, start: int, threads: int) -> bool:
        waiting = "SELECT count(*) FROM callboard.running WHERE job_id = %s AND item >= %s"
        return self.sql(waiting, job.id, start) == [(threads,)]

    def watch(self, job: callboard.Job, *, reopened: bool = False) -> JobWatcher:
        """Watch a job's counts for the length of a block; `assert_completed` asks what the watcher saw."""
        return JobWatcher(self.database_url, job.id, reopened=reopened)

    def assert_completed(
        self, job: callboard.Job, *, total: int, failed: int = 0, skipped: int = 0, retries: int | None = None,
        watcher: JobWatcher | None = None, timeout: float = TIMEOUT,
    ) -> Counter[int]:  # fmt: skip
        """The job completes with exactly these counts, no counter drifts, no row is left over, and every item ran.

        Gives how many runs each item had.
        """
        self.wait_for(job, lambda status: status["finished_at"] is not None, timeout)
        status = self.status(job)
        assert status["state"] == "completed", status
        assert sum(status[name] for name in ITEM_STATES) == total, status
        found = {name: status[name] for name in ("total", "succeeded", "failed", "skipped")}
        wanted = {"total": total, "succeeded": total - failed - skipped, "failed": failed, "skipped": skipped}
        assert found == wanted, status
        assert retries is None or status["retries"] == retries, status
        self.assert_counters_true()
        assert self.leftover_rows(job) == {"running": 0, "outbox": 0}
        if watcher is not None:
            # A reading is compared with one before it.
            assert wait_until(lambda: watcher.wrong or watcher.readings > 1, TIMEOUT, pause=POLL)
            assert watcher.wrong == []
        runs = self.run_log.run_counts(job.id)
        assert set(runs) == set(range(total)), sorted(set(range(total)) - set(runs))[:20]
        return runs

    def assert_mixed_completed(self, job: callboard.Job, total: int, **more: Any) -> Counter[int]:
        """The same of a job of `mixed` items. A crash gives an item another attempt, so retries may be more."""
        fates = Counter(fate(n) for n in range(total))
        runs = self.assert_completed(job, total=total, failed=fates["fail"], skipped=fates["skip"], **more)
        assert self.status(job)["retries"] >= 2 * fates["fail"] + fates["retry"]
        return runs

    def assert_counters_true(self) -> None:
        """A recount finds the same as the counters of every job."""
        assert self._ask(lambda conn: queries.run(conn, queries.verify()))["drift"] == []

    def leftover_rows(self, job: callboard.Job) -> dict[str, int]:
        """Rows that a finished job has no use for, once the last have gone."""

        def rows() -> dict[str, int]:
            ((running, outbox),) = self.sql(
                "SELECT (SELECT count(*) FROM callboard.running WHERE job_id = %s),"
                " (SELECT count(*) FROM callboard.outbox WHERE job_id = %s)",
                job.id,
                job.id,
            )
            return {"running": running, "outbox": outbox}

        wait_until(lambda: not any(rows().values()), TIMEOUT, pause=POLL)
        return rows()

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows that a statement gives in the test's database, by no proxy or pooler."""

        def rows(conn: Conn) -> list[tuple[Any, ...]]:
            done = conn.execute(statement, parameters or None)
            return list(done) if done.description else []

        return self._ask(rows)

    def _ask(self, ask: Callable[[Conn], Result]) -> Result:
        """The answer by a connection that is kept; by a new one if a fault has broken it. Raises OperationalError."""
        if self._conn is not None:
            try:
                return ask(self._conn)
            except psycopg.errors.FeatureNotSupported:  # the test has changed the schema under a prepared statement
                pass
            except psycopg.OperationalError:
                if not self._conn.broken:
                    raise
        self.close()
        self._conn = connect_to_look(self.database_url)
        return ask(self._conn)

    def close(self) -> None:
        """Close the connection."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    # RabbitMQ --------------------------------------------------------------------------------------------------------

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A plain channel on this test's virtual host."""
        connection = pika.BlockingConnection(pika.URLParameters(self.environment["AMQP_URL"]))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def ready_messages(self, queue: str = "default") -> int:
        """Messages in a queue that no consumer has."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)

    def has_consumer(self, queue: str = "default") -> bool:
        """Whether a worker consumes a queue, and so has declared it: it says that it is ready before."""
        try:
            with self.channel() as channel:
                return bool(channel.queue_declare(queue, passive=True).method.consumer_count)
        except pika.exceptions.ChannelClosedByBroker:
            return False

    def lose_messages(self, queue: str = "default", *, deleted: bool = False) -> int:
        """Purge a queue, or delete it, and again until some messages were in it; how many were lost."""
        lost = 0

        def lose() -> int:
            nonlocal lost
            with self.channel() as channel:
                try:
                    if channel.queue_declare(queue, passive=True).method.message_count:
                        done = channel.queue_delete(queue) if deleted else channel.queue_purge(queue)
                        lost = int(done.method.message_count)
                except ChannelClosedByBroker:  # no worker has declared it again yet
                    pass
                return lost

        assert wait_until(lose, TIMEOUT, pause=0.0)
        return lost


@contextmanager
def make_scenario(run_log: RunLog, environment: dict[str, str], database_url: str, folder: Path) -> Iterator[Scenario]:
    """A scenario with a client that knows the actors' names; its workers end with it."""
    with ExitStack() as stack:
        broker = stack.enter_context(client(environment, NAMES))
        made = Scenario(environment, database_url, run_log, broker, folder)
        try:
            yield made
        finally:
            for worker in made.workers:
                worker.kill()
            made.close()


def seconds_since(moment: float) -> float:
    """How long ago that was, by the monotonic clock."""
    return time.monotonic() - moment
