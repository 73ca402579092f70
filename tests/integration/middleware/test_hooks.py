"""What an app's own middleware, and its own class of a broker, hear of a tracked broker."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, cast

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker as StockRabbitmqBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import QueueJoinTimeout, QueueNotFound
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

import callboard
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.process import side_thread
from callboard.middleware.process.heartbeat import OtherBroker
from callboard.middleware.publish import publisher
from callboard.middleware.tracked_broker import TrackedBroker
from callboard.middleware.tracking import runtime_of
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import WorkerInfo
from callboard.sql.writes.workers import register_worker, stop_worker
from tests.support.timer import Timer
from tests.support.workers import wait_until

TIMEOUT = 300.0
HOOKS = ("before_process_message", "after_process_message", "after_skip_message", "after_ack", "after_nack")


class Heard(dramatiq.Middleware):
    """Counts what it hears, by the first argument of the message."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Any]] = Counter()
        self.enqueued: list[tuple[str, str, Any]] = []  # hook, thread, number of the retry
        for hook in HOOKS:
            setattr(self, hook, self._counter(hook))

    def _counter(self, hook: str) -> Callable[..., None]:
        def count(_broker: Any, message: Any, **_: Any) -> None:
            self.counts[hook, message.args[0]] += 1

        return count

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._enqueue("before", message)

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._enqueue("after", message)

    def _enqueue(self, hook: str, message: Any) -> None:
        thread = threading.current_thread()
        name = "sender" if thread is threading.main_thread() else type(thread).__name__
        self.enqueued.append((hook, name, message.options.get("retries")))


class App:
    """An app on a tracked broker, with middleware of its own; `start` starts a worker."""

    def __init__(self, broker: dramatiq.Broker, conn: Conn) -> None:
        self.broker = broker
        self.conn = conn
        self.heard = Heard()
        self.runs: Counter[Any] = Counter()
        self.worker: dramatiq.Worker | None = None

    def use(self, *middleware: dramatiq.Middleware) -> None:
        for one in (*middleware, self.heard):
            self.broker.add_middleware(one)

    def start(self) -> None:
        self.worker = dramatiq.Worker(self.broker, worker_threads=4, worker_timeout=50)
        self.worker.start()

    def copy(self, message: dramatiq.Message[Any]) -> None:
        """Publish another copy of a message that was sent."""
        row = self.conn.execute(
            "SELECT job_id, item FROM callboard.items WHERE message_uuid = %s", (message.message_id,)
        ).fetchone()
        assert row is not None
        mark = Stamp(row[0], row[1], 1, suspect=True).option()
        super(TrackedBroker, self.broker).enqueue(message.copy(options={"callboard": mark}))  # type: ignore[misc]

    def unacknowledged(self) -> int:
        return runtime_of(self.broker).consumers.open_deliveries()

    def states(self) -> Counter[str]:
        rows = self.conn.execute("SELECT state::text, count(*) FROM callboard.items GROUP BY 1")
        return Counter(dict(rows.fetchall()))

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.stop()
            self.worker = None

    def close(self) -> None:
        self.stop()
        self.broker.close()


def make_broker(kind: str, request: pytest.FixtureRequest) -> dramatiq.Broker:
    return StubBroker() if kind == "in process" else StockRabbitmqBroker(url=request.getfixturevalue("amqp_url"))


@pytest.fixture(params=["in process", "stock"])
def app(request: pytest.FixtureRequest, database_url: str) -> Iterator[App]:
    before = dramatiq.broker.global_broker
    broker = callboard.install(make_broker(request.param, request), database_url=database_url)
    dramatiq.set_broker(broker)
    with connect(database_url) as conn:
        made = App(broker, conn)
        try:
            yield made
        finally:
            made.close()
            dramatiq.broker.global_broker = before
        assert queries.run(conn, queries.verify())["drift"] == []


def test_no_middleware_hears_of_a_copy_and_the_result_stays(app: App) -> None:
    app.use(Results(backend=StubBackend()))
    begun, gate = threading.Event(), threading.Event()

    @dramatiq.actor(store_results=True)
    def add(first: int, second: int) -> int:
        begun.set()
        assert gate.wait(TIMEOUT)
        return first + second

    app.start()
    message = add.send(2, 3)
    assert begun.wait(TIMEOUT)
    app.copy(message)
    assert wait_until(lambda: app.unacknowledged() == 2, TIMEOUT)
    gate.set()
    assert message.get_result(block=True, timeout=300_000) == 5
    app.copy(message)
    assert add.send(3, 4).get_result(block=True, timeout=300_000) == 7
    assert wait_until(lambda: app.unacknowledged() == 0, TIMEOUT)
    assert message.get_result() == 5
    hooks = ("before_process_message", "after_process_message", "after_ack")
    # The thread that ran the last one hears of its end after the journal has acknowledged it, or before.
    assert wait_until(lambda: app.heard.counts["after_ack", 3], TIMEOUT)
    assert app.heard.counts == {(hook, n): 1 for hook in hooks for n in (2, 3)}


def test_nobody_hears_that_a_message_waits_for_a_worker_that_has_its_actor(app: App) -> None:
    """`Results` would store a failure for it."""
    app.use()

    @dramatiq.actor
    def work(number: int) -> None:
        app.runs[number] += 1

    with callboard.job("elsewhere"):
        work.send(1)
    actor = app.broker.actors.pop("work")
    app.start()
    kept = "SELECT 1 FROM callboard.outbox WHERE due_at = '9999-01-01Z'"
    assert wait_until(lambda: app.conn.execute(kept).fetchone() is not None, TIMEOUT)
    assert wait_until(lambda: app.unacknowledged() == 0, TIMEOUT)
    assert app.heard.counts == {}
    app.broker.actors["work"] = actor
    app.conn.execute("UPDATE callboard.outbox SET due_at = now()")
    assert wait_until(lambda: app.runs[1] == 1, TIMEOUT)


def test_a_message_that_is_parked_has_no_result_yet(app: App) -> None:
    app.use(Results(backend=StubBackend()))

    @dramatiq.actor(store_results=True)
    def double(number: int) -> int:
        return 2 * number

    with callboard.job("paused") as job:
        message = double.send(4)
    job.pause()
    app.copy(message)
    app.start()
    parked = "SELECT 1 FROM callboard.outbox WHERE due_at = 'infinity'"
    assert wait_until(lambda: app.conn.execute(parked).fetchone() is not None, TIMEOUT)
    assert wait_until(lambda: app.unacknowledged() == 0, TIMEOUT)
    assert app.heard.counts == {}
    job.resume()
    assert message.get_result(block=True, timeout=300_000) == 8


def test_hooks_of_enqueue_run_once_in_the_senders_thread_and_for_each_retry(app: App) -> None:
    app.use()

    @dramatiq.actor(max_retries=2, min_backoff=10, max_backoff=20)
    def fails(number: int) -> None:
        raise ValueError(number)

    fails.send(1)
    app.start()
    assert wait_until(lambda: app.states() == {"failed": 1}, TIMEOUT)
    senders = [("sender", None), ("WorkerThread", 1), ("WorkerThread", 2)]
    assert app.heard.enqueued == [(hook, thread, retry) for thread, retry in senders for hook in ("before", "after")]


class Moves(dramatiq.Middleware):
    """Sends a busy tenant's message to another queue."""

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        if isinstance(exception, dramatiq.RateLimitExceeded) and message.queue_name == "default":
            message.options["max_retries"] = 0
            broker.enqueue(message.copy(queue_name="slow"))


class Repeats(dramatiq.Middleware):
    """Runs a message again after it succeeded."""

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        left = message.options.get("repeat", 0)
        if exception is None and left:
            broker.enqueue(message.copy(options={"repeat": left - 1}), delay=10)


class Narrows(dramatiq.Middleware):
    """Tries only what is left."""

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        if isinstance(exception, ValueError) and len(message.args[0]) > 1:
            message.options["max_retries"] = 0
            broker.enqueue(message.copy(args=(message.args[0][1:],)))


class Again(dramatiq.Middleware):
    """Sends the same once more though it has failed for good."""

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        if isinstance(exception, KeyError) and "again" not in message.options:
            message.options["max_retries"] = 0
            message.options["again"] = True
            broker.enqueue(message)


@pytest.mark.parametrize(
    ("middleware", "argument", "runs", "states"),
    [
        (Moves(), "busy", ["busy", "busy"], {"failed": 1, "succeeded": 1}),
        (Repeats(), "repeat", ["repeat", "repeat", "repeat"], {"succeeded": 3}),
        (Narrows(), [1, 2, 3], [[1, 2, 3], [2, 3], [3]], {"failed": 3}),
        (Again(), "again", ["again", "again"], {"failed": 2}),
    ],
    ids=["another queue", "after a success", "other arguments", "and failed"],
)
def test_a_message_that_a_middleware_sends_again_runs(
    middleware: dramatiq.Middleware, argument: Any, runs: list[Any], states: dict[str, int], app: App
) -> None:
    app.use(middleware)
    app.broker.declare_queue("slow")
    ran: list[Any] = []

    @dramatiq.actor(max_retries=0)
    def work(given: Any) -> None:
        ran.append(given)
        if given == "busy" and len(ran) == 1:
            raise dramatiq.RateLimitExceeded("busy")
        if given == "again":
            raise KeyError(given)
        if argument != given or given == [1, 2, 3]:
            raise ValueError(given)

    work.send_with_options(args=(argument,), repeat=2 if argument == "repeat" else 0)
    app.start()
    assert wait_until(lambda: app.states() == states, TIMEOUT), app.states()
    assert ran == runs


@pytest.mark.parametrize("kind", ["in process", "stock", "ours"])
def test_an_enqueue_of_the_apps_own_class_is_called_for_each_send_and_retry(
    kind: str, request: pytest.FixtureRequest, database_url: str
) -> None:
    calls: list[Any] = []
    plain = {"in process": StubBroker, "stock": StockRabbitmqBroker, "ours": callboard.RabbitmqBroker}[kind]

    class Own(plain):  # type: ignore[misc,valid-type]
        def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
            calls.append(message.options.get("retries"))
            return super().enqueue(message, delay=delay)

    arguments = {} if kind == "in process" else {"url": request.getfixturevalue("amqp_url")}
    if kind == "ours":
        arguments["database_url"] = database_url
    broker = callboard.install(Own(**arguments), database_url=database_url)
    assert isinstance(broker, Own)
    with connect(database_url) as conn:
        app = App(broker, conn)

        @dramatiq.actor(broker=broker, max_retries=1, min_backoff=10, max_backoff=20)
        def fails(number: int) -> None:
            raise ValueError(number)

        fails.send(1)
        app.start()
        assert wait_until(lambda: app.states() == {"failed": 1}, TIMEOUT)
        app.close()
    assert calls == [None, 1]


def test_install_tracks_the_broker_that_the_app_has_set(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://nowhere")
    broker = StubBroker()
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    assert callboard.install(database_url=database_url) is broker
    assert runtime_of(broker) is runtime_of(callboard.install())
    broker.close()


def test_an_undeclared_queue_is_refused_in_process(database_url: str) -> None:
    broker = callboard.install(StubBroker(), database_url=database_url)
    message: dramatiq.Message[None] = dramatiq.Message("nowhere", "work", (), {}, {})
    with pytest.raises(QueueNotFound, match="nowhere"):
        broker.enqueue(message)
    broker.close()


def test_join_waits_for_what_was_just_sent_for_retries_delays_and_children(app: App) -> None:
    """As the recipe for tests of Dramatiq's guide has it."""

    @dramatiq.actor(max_retries=1, min_backoff=300, max_backoff=300)
    def work(number: int) -> None:
        app.runs[number] += 1
        if number == 1 and app.runs[number] == 1:
            raise ValueError(number)
        if number == 2:
            work.send(3)

    app.start()
    work.send(1)
    work.send(2)
    work.send_with_options(args=(4,), delay=300)
    app.broker.join("default", timeout=300_000)
    assert app.runs == {1: 2, 2: 1, 3: 1, 4: 1}
    with callboard.job("paused") as job:
        work.send_with_options(args=(5,), delay=60_000)
    with pytest.raises(QueueJoinTimeout):
        app.broker.join("default", timeout=100)
    job.pause()
    app.broker.join("default")


def test_join_raises_what_an_actor_raised_in_process(database_url: str) -> None:
    """As Dramatiq's StubBroker does for the tests of an app."""
    broker = callboard.install(StubBroker(), database_url=database_url)

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=10, max_backoff=10)
    def fails() -> None:
        raise LookupError("the app's own")

    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    fails.send()
    with pytest.raises(LookupError, match="the app's own"):
        broker.join("default", timeout=300_000)
    worker.stop()
    broker.close()


def test_join_and_the_log_are_as_the_tests_of_an_app_know_them(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Dramatiq's own: a delayed message is put into the broker's queue, a method of loggers is replaced."""
    broker = cast("StubBroker", callboard.install(StubBroker(), database_url=database_url))
    ran, logged = [], []
    monkeypatch.setattr(logging.Logger, "info", lambda _logger, text, *_args, **_options: logged.append(text))

    @dramatiq.actor(broker=broker, throws=LookupError)
    def work(number: int) -> None:
        ran.append(number)
        raise LookupError(number)

    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    broker.queues["default"].put(work.message_with_options(args=(1,), eta=0).encode())
    broker.join("default", timeout=300_000, fail_fast=False)
    worker.stop()
    broker.close()
    assert ran == [1]
    assert "Failed to process message %s with expected exception %s." in logged


def test_the_in_process_broker_runs_untracked_without_a_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An app whose module calls `install` can be imported by its unit tests."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    broker = StubBroker()
    assert callboard.install(broker) is broker
    assert "and records nothing" in caplog.text
    ran = []

    @dramatiq.actor(broker=broker, results="strict")
    def work(number: int) -> None:
        callboard.step("at work")
        callboard.progress(1, 2)
        ran.append(number)

    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    work.send(1)
    broker.join("default", timeout=300_000)
    worker.stop()
    assert ran == [1]
    with pytest.raises(callboard.NotConfigured, match="DATABASE_URL is not set"):
        callboard.install(StockRabbitmqBroker(url="amqp://127.0.0.1"))
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)
    for _ in range(2):
        with pytest.raises(callboard.NotConfigured, match="DATABASE_URL is not set"):
            callboard.install()


def test_flush_drops_what_was_just_sent_and_what_waits(app: App) -> None:
    @dramatiq.actor
    def work(number: int) -> None:
        app.runs[number] += 1

    work.send(1)
    work.send_with_options(args=(2,), delay=100)
    with callboard.job("sent") as job:
        work.send(3)
    app.broker.flush_all()
    assert job.status()["reason"] == "the messages of the queue default were dropped"
    app.start()
    work.send(4)
    app.broker.join("default", timeout=300_000)
    assert app.runs == {4: 1}
    assert job.wait(TIMEOUT)["cancelled"] == 1
    assert wait_until(lambda: app.states() == {"succeeded": 1, "waiting": 3}, TIMEOUT), app.states()


def test_an_in_process_broker_is_not_flushed_where_workers_of_another_broker_live(
    conn: Conn, database_url: str
) -> None:
    """A test that flushes may have been given the database of the app itself: Django's runner changes only its own."""

    @dramatiq.actor(broker=(broker := callboard.install(StubBroker(), database_url=database_url)))
    def work(number: int) -> None:
        """Not run."""

    work.send(1)
    theirs = register_worker(conn, WorkerInfo("backstage", 1, 1, "", broker="rabbit@backstage, virtual host /"))
    with pytest.raises(OtherBroker, match="the workers at backstage, which are on rabbit@backstage, virtual host /"):
        broker.flush_all()
    stops = "SELECT stopping IS NOT NULL FROM callboard.jobs"
    assert conn.execute(stops).fetchall() == [(False,)]
    stop_worker(conn, theirs)
    broker.flush_all()
    assert conn.execute(stops).fetchall() == [(True,)]
    broker.close()


def test_a_coroutine_runs_whose_actor_is_declared_while_the_worker_runs(app: App) -> None:
    app.start()

    @dramatiq.actor(max_retries=0)
    async def work(number: int) -> None:
        app.runs[number] += 1

    work.send(1)
    app.broker.join("default", timeout=300_000)
    assert app.runs == {1: 1}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_an_item_whose_decorated_function_did_not_run_fails(app: App) -> None:
    def careless(function: Callable[[int], Any]) -> Callable[[int], Any]:
        @wraps(function)
        def call(number: int) -> Any:
            return function(number)

        return call

    @dramatiq.actor(max_retries=0)
    @careless
    async def coroutine(number: int) -> None:
        app.runs[number] += 1

    @dramatiq.actor(max_retries=0)
    @careless
    def generator(number: int) -> Iterator[int]:
        app.runs[number] += 1
        yield number

    @dramatiq.actor(max_retries=0)
    @careless
    def lazy(number: int) -> Iterator[int]:
        app.runs[number] += 1
        return (n for n in range(number))

    app.start()
    with callboard.job("decorated") as job:
        for number, actor in enumerate((coroutine, generator, lazy)):
            actor.send(number)
    status = job.wait(TIMEOUT)
    assert app.runs == {2: 1}
    items = list(job.items())
    assert [item["state"] for item in items] == ["failed", "failed", "succeeded"]
    assert [item["error"]["type"].rsplit(".")[-1] for item in items[:2]] == ["NotRun"] * 2
    assert status["unkept"] == 1


@pytest.mark.parametrize("works", [False, True], ids=["sender", "worker"])
def test_a_closed_broker_leaves_no_connection_and_no_thread(
    works: bool, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_thread, "IDLE_SECONDS", 0.1)
    before = set(threading.enumerate())

    @dramatiq.actor
    def work(number: int) -> None:
        pass

    work.send(1)
    assert runtime_of(app.broker).process.pool.get_stats()["pool_size"] > 0
    if works:
        app.start()
        app.broker.join("default", timeout=300_000)
        app.stop()
    app.broker.close()
    left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert wait_until(lambda: app.conn.execute(left).fetchone() == (0,), TIMEOUT)
    assert wait_until(lambda: not set(threading.enumerate()) - before, TIMEOUT), threading.enumerate()


def test_retries_and_children_start_without_a_poll_in_between(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "POLL_SECONDS", 90.0)

    @dramatiq.actor(max_retries=10, min_backoff=1, max_backoff=2)
    def work(number: int) -> None:
        app.runs[number] += 1
        if number == 1 and app.runs[number] < 5:
            raise ValueError(number)
        if number < 5:
            work.send(number + 1)

    app.start()
    with callboard.job("chain"):
        work.send(1)
    timer = Timer()
    assert wait_until(lambda: app.runs[5] == 1, TIMEOUT)
    assert timer.seconds < 60
