"""A pytest plug-in that runs an app's actors in the test process, tracked, without RabbitMQ.

    # conftest.py
    pytest_plugins = ["callboard.testing"]

    # test_shop.py
    def test_a_charge(callboard_worker):
        done = callboard_worker.run(shop.charge, [{"customer": 7}])
        assert done.results == ["charged"]

It needs a PostgreSQL: the one of ``callboard[embedded]``, which it starts when first needed, or the database of
``--callboard-database URL``, in which it creates the schema. It never uses DATABASE_URL and AMQP_URL, because they may
name production. A direct call of an actor needs neither a database nor this plug-in.
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import TimeLimit

from callboard.commands.services import Server
from callboard.job import Job
from callboard.middleware.install import install
from callboard.middleware.ping import PING
from callboard.middleware.tracking import Returned, Tracking, tracking_of
from callboard.sql import settings
from callboard.sql.migrate import migrate
from callboard.sql.pool import connect
from callboard.sql.writes.workers import exclude_tests
from callboard.submit import submit

#: Threads of the worker, and the default number of seconds for which a test waits for a job.
THREADS, TIMEOUT_SECONDS = 4, 30.0
#: Seconds between two tries to become the only test worker of a database: two would run each other's items.
TURN_SECONDS = 0.05
_PLACE = pytest.StashKey[tempfile.TemporaryDirectory[str]]()
_BEFORE = pytest.StashKey[Any]()


@dataclass(frozen=True, slots=True)
class Done:
    """A finished job: its `status`, its `items` in order, their `results`, and its error groups `errors`, with the
    fields of the API. The result of an item that did not succeed is None.
    """

    job: Job
    status: dict[str, Any]
    items: list[dict[str, Any]]
    errors: list[dict[str, Any]]

    @property
    def results(self) -> list[Any]:
        """The results of the items, in order."""
        return [item["result"] for item in self.items]


class CallboardWorker:
    """A worker in this process, for the duration of a test. The app may send and submit as usual."""

    def __init__(self, broker: dramatiq.Broker) -> None:
        self._broker = broker

    def run(self, actor: Any, items: Any, *, timeout: float = TIMEOUT_SECONDS, **options: Any) -> Done:
        """Submit a job of these items, with the options of `callboard.submit`, and wait for its end: see `wait`.

        Raises RuntimeError for an actor of a broker that the app has made after the worker started.
        """
        if getattr(actor, "broker", self._broker) is not self._broker:
            raise RuntimeError(
                f"{actor.actor_name} has a broker that was made after callboard_worker started: import the module that "
                "makes it before that, at the top of the test module"
            )
        return self.wait(submit(actor, items, **options), timeout=timeout)

    def wait(self, job: Job, *, timeout: float = TIMEOUT_SECONDS) -> Done:
        """Wait until a job of the app has ended, and return it. Raises TimeoutError, with the job's status."""
        try:
            status = job.wait(timeout)
        except TimeoutError:
            raise TimeoutError(f"the job has not ended after {timeout:g} s: {job.status()}") from None
        return Done(job, status, list(job.items()), job.errors())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--callboard-database`."""
    parser.addoption(
        "--callboard-database", metavar="URL", help="run callboard_worker on this database, not an embedded one"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set the database of the tests before the app's modules are imported, so that `callboard.install()` uses it."""
    named = (settings.DATABASE_URL, settings.AMQP_URL)
    config.stash[_BEFORE] = {setting.name: setting.text for setting in named if setting.text}
    config.stash[_PLACE] = tempfile.TemporaryDirectory(prefix="callboard-test-", ignore_cleanup_errors=True)
    os.environ.pop("AMQP_URL", None)
    os.environ["DATABASE_URL"] = config.getoption("--callboard-database") or _server(config).url


def pytest_unconfigure(config: pytest.Config) -> None:
    """Restore the environment, and delete the folder."""
    os.environ.pop("DATABASE_URL", None)
    before: dict[str, str] = config.stash[_BEFORE]
    os.environ.update(before)
    config.stash[_PLACE].cleanup()


def _server(config: pytest.Config) -> Server:
    return Server(Path(config.stash[_PLACE].name) / "db")


@pytest.fixture(scope="session")
def _callboard_database(pytestconfig: pytest.Config) -> Iterator[str]:
    url = os.environ["DATABASE_URL"]
    if pytestconfig.getoption("--callboard-database"):
        migrate(url)
        yield url
        return
    with _server(pytestconfig):
        migrate(url)
        yield url


@pytest.fixture
def callboard_worker(_callboard_database: str) -> Iterator[CallboardWorker]:
    """A worker that runs all actors of Dramatiq's broker, whatever its kind, in this process."""
    app = dramatiq.broker.global_broker
    if app is None:  # the test imports the app's modules later
        app = StubBroker()
    broker = app if _is_of_tests(app, _callboard_database) else _moved(app)
    install(broker, database_url=_callboard_database)
    dramatiq.set_broker(broker)
    _start_time_limits(broker)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=THREADS)
    try:
        with connect(_callboard_database) as conn:
            while not exclude_tests(conn):
                time.sleep(TURN_SECONDS)
            worker.start()
            try:
                yield CallboardWorker(broker)
            finally:
                worker.stop()
                _forget_failures(broker)
    finally:
        if broker is not app:
            _give_back(broker, app)
            broker.close()
        if dramatiq.get_broker() is broker:  # not a broker that the app made during the test
            dramatiq.set_broker(app)


def _is_of_tests(broker: dramatiq.Broker, database_url: str) -> bool:
    """Return whether a broker is an in-process one that does not record in another database than the tests'. It records
    in another one if the app was imported before this plug-in set the database, for example by `conftest.py`.
    """
    tracking = tracking_of(broker)
    return isinstance(broker, StubBroker) and (tracking is None or tracking.runtime.url == database_url)


def _moved(app: dramatiq.Broker) -> StubBroker:
    """Move the actors of an app's broker to a new in-process broker, with the app's middleware, and return that."""
    own = [one for one in app.middleware if not isinstance(one, Tracking | Returned)]
    broker = StubBroker(middleware=own)
    for actor in app.actors.values():
        actor.broker = broker
        broker.declare_actor(actor)
    return broker


def _start_time_limits(broker: dramatiq.Broker) -> None:
    """Start the thread that raises time limits, because Dramatiq starts it only in processes of its own command."""
    for one in broker.middleware:
        if isinstance(one, TimeLimit) and isinstance(one.manager, threading.Thread) and not one.manager.is_alive():
            one.after_process_boot(broker)


def _forget_failures(broker: dramatiq.Broker) -> None:
    """Drop the dead letters of a test: `broker.join` in a later one would raise the error of the first of them."""
    if isinstance(broker, StubBroker):
        for letters in broker.dead_letters_by_queue.values():
            letters.clear()


def _give_back(moved: dramatiq.Broker, app: dramatiq.Broker) -> None:
    """Move the actors back, including those that the test was the first to import."""
    for name, actor in moved.actors.items():
        actor.broker = app
        if name not in app.actors and name != PING:
            app.declare_actor(actor)
