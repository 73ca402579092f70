"""Real services for the tests: a private PostgreSQL and RabbitMQ, a piece of each per test.

A missing service is an error, never a skip. CALLBOARD_TEST_DATABASE_URL names a running PostgreSQL instead.
CALLBOARD_TEST_POSTGRES and CALLBOARD_TEST_RABBITMQ name folders with the programs of other releases to start.
"""

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from httpx._transports import default
from hypothesis import HealthCheck, settings

from callboard.commands.services import Server, ports
from tests.support.collected import Collected
from tests.support.databases import close_connections, database, with_database
from tests.support.distribution import Distribution, long_first
from tests.support.forked import close_forks
from tests.support.progress import Progress
from tests.support.services import POSTGRES_SETTINGS, Owner, Remote, SharedPostgres, SharedServices, postgres_programs
from tests.support.vhosts import Broker
from tests.support.workers import StartWorker, Worker

#: Into how many parts the ports are split: for the processes of a run, and some to spare.
PROCESSES = 17
#: Where Linux keeps files in memory, and how many bytes of it must be free.
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 4 << 30  # noqa: S108
#: The same examples at each run, and none is too slow: how long one takes says how busy the machine is. Other ones, to
#: search for what nobody thought of: CALLBOARD_TEST_LONG.
settings.register_profile(
    "callboard", deadline=None, derandomize=not os.environ.get("CALLBOARD_TEST_LONG"),
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("callboard")

#: The services that tests are marked with, by the fixtures that need them.
MARKS = {"postgres_url": "postgres", "older_postgres": "postgres", "broker": "rabbitmq"}
SERVICES = pytest.StashKey[SharedServices]()
COLLECTED = pytest.StashKey[Collected]()


def pytest_configure(config: pytest.Config) -> None:
    """Let a SIGTERM end the session as Ctrl-C does, so that nothing is left running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A session in the background may have SIGINT ignored, and all processes that it starts would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = os.environ.get("PYTEST_XDIST_WORKER", "")
    if process or config.getoption("numprocesses", None):
        take_ports(process)
    save_work()
    # httpx gives up after five seconds, in which a busy machine does not answer.
    for wait in ("connect", "read", "write", "pool"):
        setattr(DEFAULT_TIMEOUT_CONFIG, wait, 300.0)
    # Each client reads all certificates, for 30 ms.
    vars(default)["create_ssl_context"] = cache(httpx.create_ssl_context)
    if folder := os.environ.get("CALLBOARD_TEST_RABBITMQ"):
        nodes: Any = import_module("callboard.commands.services.rabbitmq")
        nodes.scripts = lambda: Path(folder)
        nodes.epmd = lambda: Path(folder) / "epmd"
    address = getattr(config, "workerinput", {}).get("services")
    config.stash[SERVICES] = Remote(address) if address else Owner()
    if config.getoption("numprocesses", None) and config.get_verbosity() <= 0:
        config.pluginmanager.register(Progress(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Spread the tests as `Distribution` says, unless `--dist` asks for another way."""
    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return Distribution(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Fork the processes of `-n` from one that has imported the tests: that takes each 4.5 s of processor time, and
    10 s before Python has compiled them.
    """
    owner = config.stash[SERVICES]
    if sys.platform == "linux" and isinstance(owner, Owner) and config.getoption("numprocesses", None):
        config.stash[COLLECTED] = collected = Collected(owner.folder, config.args)
        specs[:] = [type(spec)(f"id={spec.id}//popen//python={collected.python}") for spec in specs]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a process of pytest-xdist the address of the shared services."""
    owner = node.config.stash[SERVICES]
    node.workerinput["services"] = owner.serve()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the shared services."""
    close_forks()
    if collected := config.stash.get(COLLECTED, None):
        collected.close()
    if isinstance(services := config.stash.get(SERVICES, None), Owner):
        services.close()
    close_connections()


def save_work() -> None:
    """Keep temporary files in memory where it has room, and let Python keep what it compiles.

    Measured: a test's database takes 20 ms of processor time in memory and 200 ms on a disk, and each of the thousands
    of processes compiles Callboard in 90 ms if an image forbids to keep that.
    """
    if MEMORY.is_dir() and min(shutil.disk_usage(MEMORY).free, available()) > MEMORY_BYTES and not noexec(MEMORY):
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def available() -> int:
    """Bytes of memory that processes may take, as Linux tells."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024


def noexec(folder: Path) -> bool:
    """Whether no program may be started from a folder."""
    return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)


def take_ports(process: str) -> None:
    """Give each process of pytest-xdist ports of its own: a node takes its ports seconds after it chose them."""
    share = (ports.LAST - ports.FIRST) // PROCESSES
    first = ports.FIRST + (int(process.removeprefix("gw") or -1) + 1) % PROCESSES * share
    ports.FIRST, ports.LAST = first, first + share


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests by the services they use, for `pytest -m "not rabbitmq"`; long ones come first in a process of
    pytest-xdist.
    """
    if hasattr(config, "workerinput"):
        long_first(items)
    for item in items:
        for fixture in set(getattr(item, "fixturenames", ())) & MARKS.keys():
            item.add_marker(MARKS[fixture])


def pytest_collection_finish() -> None:
    """Leave what is there before the first test out of each collection of garbage: it is never any."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def services(pytestconfig: pytest.Config) -> SharedServices:
    """The services that all tests of the run share."""
    return pytestconfig.stash[SERVICES]


@pytest.fixture(scope="session")
def shared_postgres(services: SharedServices) -> SharedPostgres:
    """The PostgreSQL that all tests of the run share."""
    found: SharedPostgres = services.get("postgres")
    return found


@pytest.fixture(scope="session")
def postgres_url(shared_postgres: SharedPostgres) -> str:
    """The URL of a PostgreSQL server, as a user who may make databases."""
    return shared_postgres.url


@pytest.fixture(scope="session")
def template(shared_postgres: SharedPostgres) -> str:
    """The name of the migrated database that others are copied from."""
    return shared_postgres.template


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
def pooler_url(services: SharedServices) -> str:
    """The URL of the server through PgBouncer in transaction mode."""
    url: str = services.get("pgbouncer")
    return url


@pytest.fixture
def pooled_url(pooler_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of this test's database through PgBouncer in transaction mode, which loses prepared statements."""
    monkeypatch.setenv("CALLBOARD_PREPARE", "off")
    return with_database(pooler_url, urlsplit(database_url).path[1:])


@pytest.fixture(scope="session")
def older_postgres(services: SharedServices) -> SharedPostgres:
    """The oldest PostgreSQL among the system's packages."""
    found: SharedPostgres = services.get("older postgres")
    return found


@pytest.fixture
def older_database_url(older_postgres: SharedPostgres) -> Iterator[str]:
    """The URL of a migrated database of this test's own on an older PostgreSQL."""
    with database(older_postgres.url, older_postgres.template) as name:
        yield with_database(older_postgres.url, name)


@pytest.fixture
def private_server(tmp_path: Path) -> Iterator[Server]:
    """A running, empty PostgreSQL of this test's own, to stop, kill and start."""
    with Server(tmp_path / "postgres", settings=POSTGRES_SETTINGS, programs=postgres_programs()) as server:
        yield server


@pytest.fixture(scope="session")
def broker(services: SharedServices) -> Broker:
    """The RabbitMQ that all tests of the run share, with its management API."""
    found: Broker = services.get("rabbitmq")
    return found


@pytest.fixture
def amqp_url(broker: Broker) -> Iterator[str]:
    """The AMQP URL of a virtual host of this test's own."""
    with broker.vhost() as url:
        yield url


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
