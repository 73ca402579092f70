"""The scenario that faults happen to. It uses the services that all tests share; a test that stops or kills one asks
for `breakable_postgres` or `breakable_rabbitmq`, and its scenario uses that.

CALLBOARD_TEST_POSTGRES and CALLBOARD_TEST_RABBITMQ choose the releases, CALLBOARD_TEST_POOLED goes through PgBouncer.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from callboard.commands.services import Server
from tests.faults.rig.job_watcher import JobWatcher
from tests.faults.rig.run_log import RUN_LOG, RunLog
from tests.faults.rig.scenario import Scenario, make_scenario
from tests.support.databases import database, migrated, with_database
from tests.support.nodes import Node
from tests.support.pgbouncer import pgbouncer
from tests.support.services import POSTGRES_SETTINGS, SharedPostgres, postgres_programs, postgres_users

MAKE_VHOST = (
    'rabbit_vhost:add(<<"{name}">>, <<"tests">>), '
    "rabbit_auth_backend_internal:set_permissions("
    '<<"callboard">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)'
)
POOLED = bool(os.environ.get("CALLBOARD_TEST_POOLED"))


@pytest.fixture(scope="session")
def faulty_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """This process's PostgreSQL for tests that stop or kill it, and the name of its migrated database."""
    folder = tmp_path_factory.mktemp("faulty-postgres")
    # A test of this process alone is on it, and one takes all connections.
    settings = {**POSTGRES_SETTINGS, "max_connections": "100", "autovacuum_naptime": "5s"}
    with (
        Server(folder, settings=settings, users=postgres_users(), programs=postgres_programs()) as server,
        migrated(server.url) as template,
    ):
        yield server, template


@pytest.fixture(scope="session")
def faulty_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """This process's RabbitMQ for tests that stop or kill it."""
    with Node(tmp_path_factory.mktemp("faulty-rabbitmq")) as node:
        yield node
        node.kill()


@pytest.fixture
def breakable_postgres(faulty_postgres: tuple[Server, str]) -> Server:
    """The PostgreSQL of the scenario, to stop and kill; it runs again after the test."""
    return faulty_postgres[0]


@pytest.fixture
def breakable_rabbitmq(faulty_rabbitmq: Node) -> Node:
    """The RabbitMQ of the scenario, to stop and kill; it runs again after the test."""
    return faulty_rabbitmq


def revive(request: pytest.FixtureRequest) -> None:
    """Start the services again that the test has stopped."""
    services: list[Server | Node] = []
    if "breakable_postgres" in request.fixturenames:
        services.append(request.getfixturevalue("faulty_postgres")[0])
    if "breakable_rabbitmq" in request.fixturenames:
        services.append(request.getfixturevalue("faulty_rabbitmq"))
    for service in services:
        if not service.running():
            service.start()


@pytest.fixture
def run_log(postgres_url: str, tmp_path: Path) -> Iterator[RunLog]:
    """The log of what the actors did; it is read into tables of a session on the server that no test breaks."""
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        yield RunLog(conn, tmp_path / "runs")


@pytest.fixture
def scenario_postgres(request: pytest.FixtureRequest, shared_postgres: SharedPostgres) -> SharedPostgres:
    """The PostgreSQL of the scenario: the one that the test may break, if it asks for that."""
    if "breakable_postgres" not in request.fixturenames:
        return shared_postgres
    server, template = request.getfixturevalue("faulty_postgres")
    return SharedPostgres(server.url, template)


@pytest.fixture
def fault_database_url(request: pytest.FixtureRequest, scenario_postgres: SharedPostgres) -> Iterator[str]:
    """The URL of a migrated database of this test's own."""
    with database(scenario_postgres.url, scenario_postgres.template) as name:
        yield with_database(scenario_postgres.url, name)
        revive(request)


@pytest.fixture
def worker_database_url(
    request: pytest.FixtureRequest, scenario_postgres: SharedPostgres, fault_database_url: str
) -> Iterator[str]:
    """The URL by which workers and clients reach it: directly, or through PgBouncer in transaction mode."""
    if not POOLED:
        yield fault_database_url
        return
    name = urlsplit(fault_database_url).path[1:]
    if "breakable_postgres" not in request.fixturenames:
        yield with_database(request.getfixturevalue("pooler_url"), name)
        return
    with pgbouncer(scenario_postgres.url) as pooled:
        yield with_database(pooled, name)


@pytest.fixture
def vhost(request: pytest.FixtureRequest) -> Iterator[str]:
    """The AMQP URL of a virtual host of this test's own, on the RabbitMQ that it may break if it asks for that."""
    if "breakable_rabbitmq" not in request.fixturenames:
        yield request.getfixturevalue("amqp_url")
        return
    node: Node = request.getfixturevalue("faulty_rabbitmq")
    name = f"callboard-{uuid.uuid4().hex}"
    node.evaluate(MAKE_VHOST.format(name=name))
    yield node.url_of(name)
    revive(request)


@pytest.fixture
def environment(
    worker_database_url: str, vhost: str, run_log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The variables of workers. A test that puts a proxy in between changes them before it asks for `scenario`."""
    found = {"DATABASE_URL": worker_database_url, "AMQP_URL": vhost, RUN_LOG: str(run_log.folder)}
    if POOLED:
        found["CALLBOARD_PREPARE"] = "off"
        monkeypatch.setenv("CALLBOARD_PREPARE", "off")  # the client is in this process
    return found


@pytest.fixture
def scenario(
    request: pytest.FixtureRequest, environment: dict[str, str], fault_database_url: str,
    run_log: RunLog, tmp_path: Path,
) -> Iterator[Scenario]:  # fmt: skip
    """The scenario. Whatever happens to it, the counts of each job add up all the while, and match a recount."""
    with make_scenario(run_log, environment, fault_database_url, tmp_path) as made:
        with JobWatcher(fault_database_url, reopened=True, pause=0.5) as watcher:
            yield made
        revive(request)
        made.assert_counters_true()
    assert watcher.wrong == []
    assert watcher.looks > 0
