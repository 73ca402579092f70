"""Real services for the tests: a private PostgreSQL and RabbitMQ, a piece of each per test.

A missing service is an error, never a skip. CALLBOARD_TEST_DATABASE_URL and CALLBOARD_TEST_AMQP_URL name
running ones instead; the latter needs its management API (CALLBOARD_TEST_MANAGEMENT_URL, or port 15672).
CALLBOARD_TEST_POSTGRES and CALLBOARD_TEST_RABBITMQ name folders with the programs of other releases to start.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings

from callboard.commands.services import Node, Server, ports, postgres, rabbitmq
from tests.support.databases import database, migrated, with_database
from tests.support.pgbouncer import NOBODY, pgbouncer
from tests.support.vhosts import Broker
from tests.support.workers import StartWorker, Worker

# Tests lose no data they care for when the power fails; and no test shall find the server full.
TEST_SETTINGS = {"fsync": "off", "max_connections": "300"}
MANAGEMENT = "rabbitmq_management"
#: The same examples at each run, and none is too slow: how long one takes says how busy the machine is. Other ones, to
#: search for what nobody thought of: CALLBOARD_TEST_LONG.
settings.register_profile(
    "callboard", deadline=None, derandomize=not os.environ.get("CALLBOARD_TEST_LONG"),
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("callboard")

MARKS = {
    "postgres_url": "postgres",
    "older_postgres_url": "postgres",
    "broker": "rabbitmq",
    "private_node": "rabbitmq",
}


def pytest_configure() -> None:
    """Let a SIGTERM end the session as Ctrl-C does, so that nothing is left running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Who starts the tests in the background may have SIGINT ignored, and all that they start would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    take_ports(os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if folder := os.environ.get("CALLBOARD_TEST_RABBITMQ"):
        nodes: Any = import_module("callboard.commands.services.rabbitmq")
        nodes.scripts = lambda: Path(folder)
        nodes.epmd = lambda: Path(folder) / "epmd"


def take_ports(process: str, processes: str) -> None:
    """Of those who test side by side each has ports of its own: a node takes its ports seconds after it chose them."""
    share = (ports.LAST - ports.FIRST) // int(processes)
    first = ports.FIRST + int(process.removeprefix("gw")) * share
    ports.FIRST, ports.LAST = first, first + share


def postgres_programs() -> Path | None:
    """The folder of the PostgreSQL to test on; None: the embedded one."""
    folder = os.environ.get("CALLBOARD_TEST_POSTGRES")
    return Path(folder) if folder else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests by the services they use, for `pytest -m "not rabbitmq"`."""
    for item in items:
        for fixture in set(getattr(item, "fixturenames", ())) & MARKS.keys():
            item.add_marker(MARKS[fixture])


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server, as one who may make databases."""
    if url := os.environ.get("CALLBOARD_TEST_DATABASE_URL"):
        yield url
        return
    users = [NOBODY] if os.geteuid() == 0 else []
    folder = tmp_path_factory.mktemp("postgres")
    with postgres(folder, settings=TEST_SETTINGS, users=users, programs=postgres_programs()) as server:
        yield server.url


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Iterator[str]:
    """The name of the migrated database that others are copied from."""
    with migrated(postgres_url) as name:
        yield name


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """The URL of a migrated database of this test's own."""
    with database(postgres_url, template) as name:
        yield with_database(postgres_url, name)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """The URL of a database of this test's own without anything in it."""
    with database(postgres_url) as name:
        yield with_database(postgres_url, name)


@pytest.fixture(scope="session")
def pooler_url(postgres_url: str) -> Iterator[str]:
    """The URL of the server through PgBouncer in transaction mode."""
    with pgbouncer(postgres_url) as url:
        yield url


@pytest.fixture
def pooled_url(pooler_url: str, database_url: str) -> str:
    """The URL of this test's database through PgBouncer in transaction mode."""
    return with_database(pooler_url, urlsplit(database_url).path[1:])


@pytest.fixture(scope="session")
def older_postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the oldest PostgreSQL among the system's packages."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    if not found:
        pytest.fail("no PostgreSQL among the system's packages; `make test` installs it or says how")
    folder = tmp_path_factory.mktemp("older-postgres")
    with postgres(folder, settings=TEST_SETTINGS, programs=found[0].parent) as server:
        yield server.url


@pytest.fixture
def older_database_url(older_postgres_url: str) -> Iterator[str]:
    """The URL of a migrated database of this test's own on an older PostgreSQL."""
    with migrated(older_postgres_url) as name:
        yield with_database(older_postgres_url, name)


@pytest.fixture
def private_server(tmp_path: Path) -> Iterator[Server]:
    """A running, empty PostgreSQL of this test's own, to stop, kill and start."""
    with postgres(tmp_path / "postgres", settings=TEST_SETTINGS, programs=postgres_programs()) as server:
        yield server


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A RabbitMQ with its management API, shared by the session."""
    if url := os.environ.get("CALLBOARD_TEST_AMQP_URL"):
        default = f"http://{urlsplit(url).hostname}:15672/api"
        yield Broker(url, os.environ.get("CALLBOARD_TEST_MANAGEMENT_URL", default))
        return
    with rabbitmq(tmp_path_factory.mktemp("rabbitmq"), plugins=[MANAGEMENT]) as node:
        yield Broker.of(node)
        # Its data is thrown away, and an orderly stop takes six seconds with this plugin.
        node.kill()


@pytest.fixture
def amqp_url(broker: Broker) -> Iterator[str]:
    """The AMQP URL of a virtual host of this test's own."""
    with broker.vhost() as url:
        yield url


@pytest.fixture(scope="module")
def private_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A running RabbitMQ of this module's own, to stop, kill and start; a test leaves it running."""
    with rabbitmq(tmp_path_factory.mktemp("node")) as node:
        yield node
        node.kill()


@pytest.fixture
def environment(database_url: str, amqp_url: str) -> dict[str, str]:
    """The variables of a process that works on this test's database and virtual host."""
    return {"DATABASE_URL": database_url, "AMQP_URL": amqp_url}


@pytest.fixture
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StartWorker]:
    """Starts workers, stopped at the end; on this test's database and virtual host unless `env` says else."""
    started: list[Worker] = []

    def start(
        *modules: str,
        env: Mapping[str, str] | None = None,
        processes: int = 1,
        threads: int = 8,
        arguments: Sequence[str] = (),
    ) -> Worker:
        elsewhere = env is not None and {"DATABASE_URL", "AMQP_URL"} <= env.keys()
        base = {} if elsewhere else request.getfixturevalue("environment")
        log = tmp_path / f"worker-{len(started)}.log"
        sizes = {"processes": processes, "threads": threads}
        started.append(Worker(modules, log, env={**base, **(env or {})}, arguments=arguments, **sizes))
        return started[-1].start()

    yield start
    for one in started:
        one.kill()
