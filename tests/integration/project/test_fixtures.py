"""The fixtures give every test services of its own."""

from pathlib import Path
from urllib.parse import urlsplit

import dramatiq
import pika
import psycopg
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.support.databases import database, with_database
from tests.support.vhosts import Broker
from tests.support.workers import StartWorker, wait_until


def test_database_is_migrated_and_its_own(postgres_url: str, template: str, database_url: str) -> None:
    with (
        database(postgres_url, template) as other,
        psycopg.connect(database_url) as ours,
        psycopg.connect(with_database(postgres_url, other)) as theirs,
    ):
        ours.execute("CREATE TABLE callboard.here ()")
        found = [c.execute("SELECT to_regclass('callboard.jobs')").fetchone() for c in (ours, theirs)]
    assert found == [("callboard.jobs",)] * 2


def test_empty_database_has_nothing(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT to_regnamespace('callboard')").fetchone() == (None,)


def test_older_database_is_migrated(older_database_url: str) -> None:
    with psycopg.connect(older_database_url) as connection:
        assert 140000 <= connection.info.server_version < 180000
        assert connection.execute("SELECT count(*) FROM callboard.jobs").fetchone() == (0,)


def test_pooler_shares_server_sessions(pooled_url: str, database_url: str) -> None:
    with psycopg.connect(pooled_url, autocommit=True) as one, psycopg.connect(pooled_url, autocommit=True) as two:
        pids = {c.execute("SELECT pg_backend_pid()").fetchone() for c in (one, two)}
        name = one.execute("SELECT current_database()").fetchone()
    assert len(pids) == 1
    assert name == (urlsplit(database_url).path[1:],)


def test_vhost_is_empty_and_its_own(broker: Broker, amqp_url: str) -> None:
    with broker.vhost() as other:
        connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
        connection.channel().queue_declare("here")
        connection.close()
        assert wait_until(lambda: broker.queues(amqp_url), 300)
        assert set(broker.queues(amqp_url)) == {"here"}
        assert broker.queues(other) == {}


def test_worker_runs_dies_and_runs_again(amqp_url: str, worker: StartWorker, tmp_path: Path) -> None:
    one = worker("tests.support.plain_actors", env={"DATABASE_URL": "", "AMQP_URL": amqp_url}, processes=2)
    children = one.children()
    one.kill()
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 300)
    one.start()
    sender = RabbitmqBroker(url=amqp_url)
    path = tmp_path / "pid"
    sender.enqueue(
        dramatiq.Message(queue_name="default", actor_name="note_pid", args=(str(path),), kwargs={}, options={})
    )
    sender.close()
    assert wait_until(path.exists, 300)
    assert one.stop() == 0
