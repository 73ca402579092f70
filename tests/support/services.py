"""The services that all tests of a run share, whichever process of pytest-xdist runs a test.

The process that pytest was started in owns them. It starts a service when the first test asks for it, and stops it at
the end of the run. If that process is killed, the services end with it.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from callboard.commands.services import Server
from tests.support.databases import migrated
from tests.support.nodes import Node
from tests.support.pgbouncer import NOBODY, pgbouncer
from tests.support.vhosts import Broker

#: The tests' data may be lost when the power fails; and all tests of a run share the connections.
POSTGRES_SETTINGS = {"fsync": "off", "max_connections": "500", "max_wal_size": "1GB"}


class SharedPostgres(NamedTuple):
    """A running server: its URL, and the name of the migrated database in it that tests copy."""

    url: str
    template: str


def postgres_programs() -> Path | None:
    """The folder of the PostgreSQL to test on; None: the embedded one."""
    folder = os.environ.get("CALLBOARD_TEST_POSTGRES")
    return Path(folder) if folder else None


def postgres_users() -> list[str]:
    """The system users besides this one that may connect: root's PgBouncer runs as one of them."""
    return [NOBODY] if os.geteuid() == 0 else []


class SharedServices(Protocol):
    """Where a test gets the running services from."""

    def get(self, name: str) -> Any:
        """What the function of `STARTS` with this name gives; blocks while the service starts."""
        ...


class Owner:
    """Starts and stops the shared services. `folder` holds their data and logs, and is deleted by `close`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="callboard-tests-"))
        self._services: dict[str, Future[Any]] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._listener: Listener | None = None

    def get(self, name: str) -> Any:
        """See `SharedServices`."""
        with self._lock:
            if name not in self._services:
                self._services[name] = Future()
                self._start(self._run, name, self._services[name])
        return self._services[name].result()

    def serve(self) -> str:
        """The address at which other processes get the services: see `Remote`."""
        if self._listener is None:
            self._listener = Listener(str(self.folder / "services"), "AF_UNIX")
            self._start(self._accept, self._listener)
        return str(self._listener.address)

    def close(self) -> None:
        """Stop all services."""
        self._over.set()
        if self._listener is not None:
            Client(self._listener.address).close()  # wakes the thread that accepts
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=f"services {target.__name__}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, name: str, running: "Future[Any]") -> None:
        """Run one service to the end. It ends with the thread that started it, so this one waits for that."""
        try:
            with STARTS[name](self) as found:
                running.set_result(found)
                self._over.wait()
        except BaseException as error:
            if running.done():
                raise
            running.set_exception(error)

    def _accept(self, listener: Listener) -> None:
        with listener, ExitStack() as open_connections:
            while True:
                connection = open_connections.enter_context(listener.accept())
                if self._over.is_set():
                    return
                self._start(self._answer, connection)

    def _answer(self, connection: "Connection[Any, Any]") -> None:
        try:
            name = connection.recv()
            try:
                answer: tuple[Any, str] = (self.get(name), "")
            except Exception as error:  # noqa: BLE001 — the test that asked fails with it
                answer = (None, f"{type(error).__name__}: {error}")
            connection.send(answer)
        except (EOFError, OSError):  # the process that asked is gone
            return


class Remote:
    """The shared services, as a process of pytest-xdist gets them from their owner."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, name: str) -> Any:
        """See `SharedServices`. Raises RuntimeError if the service did not start."""
        with Client(self._address, "AF_UNIX") as connection:
            connection.send(name)
            found, trouble = connection.recv()
        if trouble:
            raise RuntimeError(f"{name} did not start: {trouble}")
        return found


@contextmanager
def _postgres(services: Owner) -> Iterator[SharedPostgres]:
    if url := os.environ.get("CALLBOARD_TEST_DATABASE_URL"):
        with migrated(url) as template:
            yield SharedPostgres(url, template)
        return
    folder, users = services.folder / "postgres", postgres_users()
    with (
        Server(folder, settings=POSTGRES_SETTINGS, users=users, programs=postgres_programs()) as server,
        migrated(server.url) as template,
    ):
        yield SharedPostgres(server.url, template)


@contextmanager
def _older_postgres(services: Owner) -> Iterator[SharedPostgres]:
    """The oldest PostgreSQL among the system's packages."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    if not found:
        raise RuntimeError("no PostgreSQL among the system's packages; `make test` installs it or says how")
    folder = services.folder / "older-postgres"
    with (
        Server(folder, settings=POSTGRES_SETTINGS, programs=found[0].parent) as server,
        migrated(server.url) as template,
    ):
        yield SharedPostgres(server.url, template)


@contextmanager
def _rabbitmq(services: Owner) -> Iterator[Broker]:
    with Node(services.folder / "rabbitmq", management=True, tls=True) as node:
        try:
            yield Broker.of(node)
        finally:
            node.kill()  # its data is thrown away, and an orderly stop takes six seconds with this plugin


def _pgbouncer(services: Owner) -> AbstractContextManager[str]:
    return pgbouncer(services.get("postgres").url)


#: How each service is started, and what it gives; it runs to the end of the block.
STARTS: dict[str, Callable[[Owner], AbstractContextManager[Any]]] = {
    "postgres": _postgres,
    "older postgres": _older_postgres,
    "pgbouncer": _pgbouncer,
    "rabbitmq": _rabbitmq,
}
