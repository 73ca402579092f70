"""Tracking on Dramatiq's own brokers: counts are exact, and nothing is acknowledged before its commit."""

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq import group
from dramatiq.brokers.rabbitmq import RabbitmqBroker as StockRabbitmqBroker
from dramatiq.brokers.stub import StubBroker, _StubConsumer
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend
from pika.adapters.blocking_connection import BlockingChannel

import callboard
from callboard import Stage
from callboard.middleware import tracking
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.tracking import runtime_of
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.writes import outcomes
from tests.support import makers
from tests.support.databases import database, with_database
from tests.support.workers import wait_until

TIMEOUT = 300.0


class TrackedBroker:
    """A tracked broker in this process, with actors that count their runs; `work` starts a worker."""

    def __init__(self, broker: dramatiq.Broker, conn: Conn) -> None:
        self.broker = broker
        self.conn = conn
        self.runs: Counter[Any] = Counter()
        self.worker: dramatiq.Worker | None = None

        @dramatiq.actor(broker=broker, max_retries=2, min_backoff=20, max_backoff=40)
        def act(number: int, fate: str = "succeed") -> Any:
            self.runs[number] += 1
            if fate == "fail" or (fate == "retry" and callboard.current().attempt == 1):
                raise ValueError(fate)
            if fate == "skip":
                raise callboard.Skip("not needed")
            if fate == "parent":
                act.send(number + 1000)
            return {"number": number} if fate == "result" else None

        @dramatiq.actor(broker=broker, max_retries=0)
        def on_success(message: dict[str, Any], result: Any) -> None:
            self.runs["on_success", result["number"]] += 1

        self.act = act
        self.on_success = on_success

    @property
    def acknowledges(self) -> tuple[Any, str]:
        """The class and the name of the method that acknowledges a message at the broker."""
        return (_StubConsumer, "ack") if isinstance(self.broker, StubBroker) else (BlockingChannel, "basic_ack")

    def unacknowledged(self) -> int:
        """Messages that the process was given and has not acknowledged."""
        return runtime_of(self.broker).consumers.open_deliveries()

    def dead_letters(self) -> int:
        if isinstance(self.broker, StubBroker):
            return len(self.broker.dead_letters)
        assert isinstance(self.broker, StockRabbitmqBroker)
        return self.broker.get_queue_message_counts("default")[2]

    def work(self) -> None:
        self.worker = dramatiq.Worker(self.broker, worker_threads=4, worker_timeout=50)
        self.worker.start()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.stop()
        runtime_of(self.broker).close()
        self.broker.close()


@pytest.fixture(params=["in process", "stock"])
def tracked(request: pytest.FixtureRequest, database_url: str) -> Iterator[TrackedBroker]:
    stock = request.param == "stock"
    broker = StockRabbitmqBroker(url=request.getfixturevalue("amqp_url")) if stock else StubBroker()
    before = dramatiq.broker.global_broker
    dramatiq.set_broker(broker)
    assert callboard.install(broker, database_url=database_url) is broker
    assert callboard.install(broker, database_url=database_url) is broker
    with connect(database_url) as conn:
        made = TrackedBroker(broker, conn)
        try:
            yield made
        finally:
            made.close()
            dramatiq.broker.global_broker = before
        assert queries.run(conn, queries.verify())["drift"] == []


FATES = ["succeed", "retry", "fail", "skip", "result"]


def test_a_mixed_job_is_counted_exactly(tracked: TrackedBroker) -> None:
    job = callboard.submit(tracked.act, ({"number": n, "fate": FATES[n % 5]} for n in range(100)))
    tracked.work()
    status = job.wait(TIMEOUT)
    assert status["state"] == "completed"
    assert (status["succeeded"], status["failed"], status["skipped"]) == (60, 20, 20)
    assert status["retries"] == 20 + 40
    assert tracked.runs == {n: {"retry": 2, "fail": 3}.get(FATES[n % 5], 1) for n in range(100)}
    assert [item["result"] for item in job.items()][4] == {"number": 4}


def test_actors_are_named_in_any_script(tracked: TrackedBroker) -> None:
    """With joiners, blanks and marks that Python does not call printable; control characters are refused."""
    names = ["レポート作成", "レポート\u3000作成", "گزارش\u200cها", "mise\u00a0à jour", "👩\u200d🔧"]
    actors = [dramatiq.actor(broker=tracked.broker, actor_name=name)(tracked.act.fn) for name in names]
    jobs = [callboard.submit(actor, [n]) for n, actor in enumerate(actors)]
    with callboard.job("sent") as sent:
        for n, actor in enumerate(actors):
            actor.send(n)
    tracked.work()
    assert [job.wait(TIMEOUT)["succeeded"] for job in [*jobs, sent]] == [1] * 5 + [5]
    for name in ("a\nb", "a\x00", "\ud800", "x" * 301):
        with pytest.raises(ValueError, match="an actor's name has 1 to 300 characters, and no control characters"):
            dramatiq.actor(broker=tracked.broker, actor_name=name)(tracked.act.fn)


def test_stages_follow_one_another(tracked: TrackedBroker) -> None:
    items = ({"number": n, "fate": "result"} for n in range(20))
    plan = [Stage(tracked.act, items=items), Stage(tracked.act, make=makers.onwards, name="next")]
    job = callboard.stages("in stages", plan)
    tracked.work()
    status = job.wait(TIMEOUT)
    assert (status["state"], status["succeeded"]) == ("completed", 40)
    assert tracked.runs == {n: 1 for start in (0, 1000) for n in range(start, start + 20)}


def test_nothing_is_acknowledged_before_its_commit(tracked: TrackedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker thread waits for the commit either: four threads run more than four items."""
    gate, acknowledged = threading.Event(), threading.Event()
    record = outcomes.record

    def held(*args: Any) -> Any:
        assert gate.wait(TIMEOUT)
        return record(*args)

    acknowledge = tracked.acknowledges
    plain = getattr(*acknowledge)

    def noted(*args: Any, **kwargs: Any) -> None:
        acknowledged.set()
        plain(*args, **kwargs)

    monkeypatch.setattr(*acknowledge, noted)
    monkeypatch.setattr(outcomes, "record", held)
    job = callboard.submit(tracked.act, range(5))
    tracked.work()
    assert wait_until(lambda: len(tracked.runs) == 5, TIMEOUT)
    assert not acknowledged.wait(0.3)
    assert job.status()["succeeded"] == 0
    gate.set()
    assert acknowledged.wait(TIMEOUT)
    assert job.status()["succeeded"] > 0
    assert wait_until(lambda: tracked.unacknowledged() == 0, TIMEOUT)


def postponed(tracked: TrackedBroker, job: callboard.Job, count: int) -> bool:
    kept = "SELECT count(*) FROM callboard.outbox WHERE job_id = %s AND due_at = '9999-01-01Z'"
    return wait_until(lambda: tracked.conn.execute(kept, (job.id,)).fetchone() == (count,), TIMEOUT)


def test_a_job_whose_actor_no_worker_announced_waits_for_one_and_fails_after_its_time(tracked: TrackedBroker) -> None:
    job = callboard.submit(tracked.act, [1, 2])
    del tracked.broker.actors["act"]
    # In process a worker publishes, and this job has none that could; elsewhere this process does, before it knows.
    remote = not isinstance(tracked.broker, StubBroker)
    if remote:
        assert wait_until(lambda: job.status()["queued"] == 2, TIMEOUT)
    tracked.work()
    if remote:
        assert postponed(tracked, job, 2)
    tracked.conn.execute("UPDATE callboard.jobs SET updated_at = now() - interval '1 minute'")
    status = job.status()
    assert (status["failed"], status["stalled"]) == (0, "no worker that is alive has the actor act")
    tracked.conn.execute("UPDATE callboard.jobs SET created_at = now() - interval '1 day'")
    status = job.wait(TIMEOUT)
    assert (status["state"], status["failed"], status["cancelled"]) == ("failed", 0, 2)
    assert status["reason"].startswith("no worker announced the actor act in the time that CALLBOARD_ACTOR_WAIT gives")
    assert wait_until(lambda: tracked.unacknowledged() == 0, TIMEOUT)
    assert tracked.dead_letters() == 0


def test_an_item_whose_own_actor_no_worker_announced_waits_for_one_and_fails_after_its_time(
    tracked: TrackedBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = OutageLog(tracking.log, "messages wait: %s")  # another test may have logged one a moment ago
    monkeypatch.setattr(tracking, "_log_waiting", log)
    with callboard.job("sent") as job:
        tracked.act.send(1)
    del tracked.broker.actors["act"]
    tracked.work()
    assert postponed(tracked, job, 1)
    assert wait_until(lambda: tracked.unacknowledged() == 0, TIMEOUT)
    assert tracked.dead_letters() == 0
    assert job.status()["failed"] == 0
    assert "messages wait: this one has no 'act'" in caplog.messages
    tracked.conn.execute("UPDATE callboard.items SET sent_at = now() - interval '1 day'")
    assert job.wait(TIMEOUT)["failed"] == 1
    (item,) = job.items("failed")
    assert item["error"]["type"].endswith("ActorNotFound")
    assert "no worker announced the actor act" in item["error"]["message"]
    assert wait_until(lambda: tracked.dead_letters() == 1, TIMEOUT)
    assert wait_until(lambda: tracked.unacknowledged() == 0, TIMEOUT)
    assert not [line for line in caplog.messages if "DLQ" in line]  # Dramatiq's line about each of these messages


def test_callbacks_children_and_pipelines_belong_to_the_job_of_their_parent(tracked: TrackedBroker) -> None:
    with callboard.job("sends") as job:
        tracked.act.send_with_options(args=(1, "result"), on_success=tracked.on_success)
        tracked.act.send(2, "parent")
        tracked.act.send(3, "skip")
    tracked.work()
    status = job.wait(TIMEOUT)
    assert (status["succeeded"], status["skipped"], status["total"]) == (4, 1, 5)
    assert tracked.runs["on_success", 1] == 1
    assert tracked.runs[1002] == 1


def test_a_plain_item_sends_at_once_and_an_item_of_a_job_with_its_success(tracked: TrackedBroker) -> None:
    """Only `install` was added to an app, and its actors may rely on a send before an error."""

    @dramatiq.actor(broker=tracked.broker, max_retries=0)
    def breaks(number: int) -> None:
        tracked.act.send(number)
        raise OSError("after its send")

    breaks.send(1)
    with callboard.job("named") as named:
        breaks.send(2)
    submitted = callboard.submit(breaks, [3])
    tracked.work()
    for job in (named, submitted):
        assert (job.wait(TIMEOUT)["failed"], job.status()["total"]) == (1, 1)
    assert wait_until(lambda: tracked.runs == {1: 1}, TIMEOUT)
    standing = (
        "SELECT actor, sum(succeeded), sum(failed) FROM callboard.jobs WHERE standing_on IS NOT NULL"
        " GROUP BY actor ORDER BY actor"
    )
    wanted = [("act", 1, 0), ("breaks", 0, 1)]
    assert wait_until(lambda: tracked.conn.execute(standing).fetchall() == wanted, TIMEOUT)


def test_an_actor_may_wait_for_the_results_of_its_own_messages(tracked: TrackedBroker) -> None:
    """What an item of a job keeps until its success is sent when it asks for a result, into the same job."""
    tracked.broker.add_middleware(Results(backend=StubBackend()))

    @dramatiq.actor(broker=tracked.broker, max_retries=0, store_results=True)
    def part(number: int) -> int:
        return number * number

    @dramatiq.actor(broker=tracked.broker, max_retries=0, store_results=True)
    def whole(number: int, *, fails: bool = False) -> int:
        parts = group([part.message(n) for n in range(number)], broker=tracked.broker).run()
        found: int = sum(parts.get_results(block=True, timeout=int(TIMEOUT) * 1000))
        if fails:
            raise OSError(found)
        return found

    job = callboard.submit(whole, [4, {"number": 3, "fails": True}])
    plain = whole.send(5)
    tracked.work()
    assert plain.get_result(block=True, timeout=int(TIMEOUT) * 1000) == 30
    status = job.wait(TIMEOUT)
    assert (status["total"], status["succeeded"], status["failed"]) == (2 + 4 + 3, 1 + 4 + 3, 1)
    assert next(item["result"] for item in job.items()) == 14


def test_an_actor_of_a_cancelled_job_is_told_that_it_can_send_no_more(tracked: TrackedBroker) -> None:
    tracked.broker.add_middleware(Results(backend=StubBackend()))
    errors: list[BaseException] = []

    @dramatiq.actor(broker=tracked.broker, max_retries=0, store_results=True)
    def waits(number: int) -> None:
        message = tracked.act.send(number)
        assert wait_until(lambda: callboard.current().cancelled, TIMEOUT)
        try:
            message.get_result(block=True)
        except RuntimeError as error:
            errors.append(error)

    job = callboard.submit(waits, [1])
    tracked.work()
    assert wait_until(lambda: job.status()["running"] == 1, TIMEOUT)
    job.cancel()
    assert job.wait(TIMEOUT)["state"] == "cancelled"
    assert wait_until(lambda: bool(errors), TIMEOUT)
    assert str(errors[0]).startswith(f"job {job.id} takes no more items, so act is not sent to it")


@pytest.fixture
def other(postgres_url: str, template: str) -> Iterator[TrackedBroker]:
    """A second broker of this process, with a database of its own: two apps in one process."""
    with database(postgres_url, template) as name, connect(with_database(postgres_url, name)) as conn:
        broker = StubBroker()
        callboard.install(broker, database_url=with_database(postgres_url, name))
        made = TrackedBroker(broker, conn)
        try:
            yield made
        finally:
            made.close()


def test_what_an_item_sends_to_a_broker_with_another_database_goes_there_at_once(
    tracked: TrackedBroker, other: TrackedBroker
) -> None:
    """No worker of the item's broker has the actor of the other."""

    @dramatiq.actor(broker=tracked.broker)
    def ask(number: int) -> None:
        other.act.send(number)

    job = callboard.submit(ask, [7])
    tracked.work()
    other.work()
    assert wait_until(lambda: other.runs == {7: 1}, TIMEOUT)
    assert job.wait(TIMEOUT)["total"] == 1


def test_a_block_takes_no_message_for_a_broker_with_another_database(
    tracked: TrackedBroker, other: TrackedBroker
) -> None:
    """The other database may have an open job of the same number, which it would join."""
    with callboard.job("ours") as job:
        other.conn.execute("INSERT INTO callboard.jobs (id, name) VALUES (%s, 'theirs')", (job.id,))
        with pytest.raises(callboard.BadItem, match=f"act is an actor of .* another database than job {job.id}"):
            other.act.send(1)
        tracked.act.send(2)
    assert job.status()["total"] == 1
    assert other.conn.execute("SELECT count(*) FROM callboard.items").fetchone() == (0,)


def test_a_delayed_send_comes_from_the_outbox(tracked: TrackedBroker) -> None:
    with callboard.job("later") as job:
        tracked.act.send_with_options(args=(1,), delay=int(TIMEOUT) * 1000)
    assert tracked.conn.execute("SELECT count(*) FROM callboard.outbox").fetchone() == (1,)
    tracked.conn.execute("UPDATE callboard.outbox SET due_at = now()")
    tracked.work()
    assert job.wait(TIMEOUT)["succeeded"] == 1


def test_a_message_sent_before_or_after_the_worker_starts_runs_once(tracked: TrackedBroker) -> None:
    with callboard.job("before and after") as job:
        tracked.act.send(1)
        tracked.work()
        for n in range(2, 60):
            tracked.act.send(n)
    assert job.wait(TIMEOUT)["succeeded"] == 59
    assert wait_until(lambda: not tracked.conn.execute("SELECT 1 FROM callboard.outbox").fetchone(), TIMEOUT)
    tracked.close()
    assert set(tracked.runs.values()) == {1}, {n: times for n, times in tracked.runs.items() if times > 1}


def test_current_raises_outside_an_item(tracked: TrackedBroker) -> None:
    with pytest.raises(callboard.NotInAnItem, match="outside a tracked actor"):
        callboard.current()
