"""What a pipeline runs on in these tests, and what a user does with it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import callboard
from callboard.commands.local.remote_world import Server, World
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.writes import tokens
from callboard.sql.writes.requests import Requester
from tests.faults.rig import periods
from tests.support import script as scripts
from tests.support.clients import client
from tests.support.databases import database, with_database
from tests.support.programs import run
from tests.support.services import SharedPostgres
from tests.support.vhosts import Broker
from tests.support.workers import Worker, wait_until

TIMEOUT = 300.0
#: The statuses of some jobs that were read together, in order.
Seen: TypeAlias = list[tuple[dict[str, Any], ...]]
#: Seconds without a heartbeat after which a worker is taken for dead.
DEAD_AFTER = "3"


@dataclass
class Rig:
    """A database, a virtual host, a worker, and the services that the pipelines call, which run in this process."""

    environment: dict[str, str]
    conn: Conn
    world: World
    worker: Worker
    folder: Path

    def python(self, script: str, **variables: str) -> str:
        """Run a user's script; what it prints."""
        done = run(self.folder, "-c", script, env={**self.environment, **variables}, program=scripts.PROGRAM)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, module: str, *calls: str) -> list[callboard.Job]:
        """The jobs that these calls in a user's script make."""
        ids = self.python(f"from callboard.actors import {module}\nfor job in [{', '.join(calls)}]: print(job.id)")
        return [callboard.get(int(number)) for number in ids.split()]

    def make_tables(self, module: str) -> None:
        """The tables of a pipeline, by a migration of the app; it may run again."""
        # This variable gives it an interpreter of its own (see `forked`), which shows an import that the module lacks.
        script = self.python(f"from callboard.actors import {module}; print({module}.TABLES)", PYTHONHASHSEED="0")
        for _ in range(2):
            self.conn.execute(script.encode())

    def rows(self, sql: str, *params: Any) -> list[Any]:
        return self.conn.execute(sql.encode(), params).fetchall()

    def token(self, **given: Any) -> dict[str, str]:
        """The header of a new token."""
        secret, _ = tokens.create(self.conn, Requester("cli", "anna"), name="tests", **given)
        return {"Authorization": f"Bearer {secret}"}

    def restart_worker(self) -> None:
        """SIGKILL, and a start, when the services are done with the calls that the worker had made."""
        self.worker.kill()
        assert wait_until(lambda: not self.world._customers, TIMEOUT)  # else they count beside those of the next worker
        self.worker.start()

    def reaches(self, job: callboard.Job, progress: float) -> bool:
        return wait_until(lambda: job.status()["progress"] >= progress, TIMEOUT, pause=0.02)

    @contextmanager
    def watched(self, *jobs: callboard.Job, seen: Seen | None = None) -> Iterator[Seen]:
        """Read the jobs again and again during the block, as a page does; the different statuses, in order, in a list
        that may be given.
        """
        seen = [] if seen is None else seen
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.03):
                now = tuple(job.status() for job in jobs)
                if not seen or now != seen[-1]:
                    seen.append(now)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()

    def assert_nothing_left(self) -> None:
        """No row says that something runs, and each count is that of a recount."""
        assert wait_until(lambda: self.rows("SELECT FROM callboard.running") == [], TIMEOUT, pause=0.1)
        assert list(queries.run(self.conn, queries.verify())["drift"]) == []


@contextmanager
def make_rig(
    postgres: SharedPostgres, broker: Broker, folder: Path, *, through: Callable[[str], str] = str,
    modules: tuple[str, ...] = (), more: Mapping[str, str] | None = None, dead_after: str = DEAD_AFTER,
) -> Iterator[Rig]:  # fmt: skip
    """A rig; its processes reach the database by the URL that `through` makes of its own. A worker that is silent for
    `dead_after` seconds is taken for dead.
    """
    with ExitStack() as stack:
        name = stack.enter_context(database(postgres.url, postgres.template))
        url = with_database(postgres.url, name)
        world = World()
        server = stack.enter_context(Server(world))
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        stack.callback(serving.join)
        stack.callback(server.shutdown)
        environment = {
            **(more or {}),
            "DATABASE_URL": through(url), "AMQP_URL": stack.enter_context(broker.vhost()),
            "REMOTE_URL": f"http://127.0.0.1:{server.server_port}", periods.SHORT_PERIODS: DEAD_AFTER,
            periods.DEAD_AFTER: dead_after,
        }  # fmt: skip
        actors = ("callboard.actors", periods.MODULE, *modules)
        worker = Worker(actors, folder / "worker.log", env=environment, threads=10)
        stack.callback(worker.kill)
        worker.start()
        stack.enter_context(client(environment, ()))
        yield Rig(environment, stack.enter_context(connect(url)), world, worker, folder)
