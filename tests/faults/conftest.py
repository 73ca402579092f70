"""Services of the fault suite's own, to stop, kill and start: one PostgreSQL and one RabbitMQ for all of it.

CALLBOARD_TEST_POSTGRES and CALLBOARD_TEST_RABBITMQ choose their releases, CALLBOARD_TEST_POOLED goes through PgBouncer.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from callboard.commands.services import Node, Server
from callboard.sql.migrate import migrate
from tests.faults.rig.ledger import TABLE, VARIABLE, Ledger
from tests.faults.rig.scene import Scene, scene
from tests.faults.rig.witness import Witness
from tests.support.databases import database, with_database
from tests.support.pgbouncer import pgbouncer
from tests.support.services import POSTGRES_SETTINGS, postgres_programs, postgres_users


@pytest.fixture(scope="session")
def the_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The PostgreSQL that faults happen to."""
    folder = tmp_path_factory.mktemp("faulty-postgres")
    settings = {**POSTGRES_SETTINGS, "autovacuum_naptime": "5s"}
    with Server(folder, settings=settings, users=postgres_users(), programs=postgres_programs()) as server:
        yield server


@pytest.fixture(scope="session")
def the_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The RabbitMQ that faults happen to."""
    with Node(tmp_path_factory.mktemp("faulty-rabbitmq")) as node:
        yield node
        node.kill()


@pytest.fixture
def server(the_server: Server) -> Iterator[Server]:
    """It, running again after each test."""
    yield the_server
    if not the_server.running():
        the_server.start()


@pytest.fixture
def node(the_node: Node) -> Iterator[Node]:
    """It, running again after each test."""
    yield the_node
    if not the_node.running():
        the_node.start()


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[tuple[str, Ledger]]:
    """The table of runs, on the server that is never broken: (URL, ledger)."""
    with database(postgres_url) as name:
        url = with_database(postgres_url, name)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(TABLE)
            yield url, Ledger(conn)


@pytest.fixture
def fault_database_url(server: Server) -> Iterator[str]:
    """A migrated database of this test's own on the server that faults happen to."""
    name = f"callboard_{uuid.uuid4().hex}"
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
    url = with_database(server.url, name)
    migrate(url)
    yield url
    if not server.running():
        server.start()
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def worker_database_url(server: Server, fault_database_url: str) -> Iterator[str]:
    """How workers and clients reach it: directly, or through PgBouncer in transaction mode."""
    if not os.environ.get("CALLBOARD_TEST_POOLED"):
        yield fault_database_url
        return
    with pgbouncer(server.url) as pooled:
        yield with_database(pooled, urlsplit(fault_database_url).path[1:])


@pytest.fixture
def vhost(node: Node) -> Iterator[str]:
    """The AMQP URL of a virtual host of this test's own."""
    name = f"callboard-{uuid.uuid4().hex}"
    node.ctl("add_vhost", name)
    node.ctl("set_permissions", "-p", name, "callboard", ".*", ".*", ".*")
    yield node.url_of(name)
    if not node.running():
        node.start()
    node.ctl("delete_vhost", name)


@pytest.fixture
def environment(
    worker_database_url: str, vhost: str, ledger: tuple[str, Ledger], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """What workers run in. A test that puts a proxy in between changes it before it asks for `on`."""
    found = {"DATABASE_URL": worker_database_url, "AMQP_URL": vhost, VARIABLE: ledger[0]}
    if os.environ.get("CALLBOARD_TEST_POOLED"):
        found["CALLBOARD_PREPARE"] = "off"
        monkeypatch.setenv("CALLBOARD_PREPARE", "off")  # the client is in this process
    return found


@pytest.fixture
def on(
    server: Server, node: Node, environment: dict[str, str], fault_database_url: str, ledger: tuple[str, Ledger],
    tmp_path: Path,
) -> Iterator[Scene]:  # fmt: skip
    """The scene; whatever is done on it, the parts of its jobs add up all the while, and recounting finds what the
    counters say.
    """
    with scene(server, node, ledger[1], environment, fault_database_url, tmp_path) as made:
        with Witness(fault_database_url, reopened=True, pause=0.2) as witness:
            yield made
        if not server.running():
            server.start()
        made.prove_true()
    assert witness.wrong == []
    assert witness.looks > 0
