"""Rounds of the publisher, on a real database and a broker that refuses what a test says."""

import threading
from collections.abc import Iterator, Sequence

import pytest

from callboard.middleware.publish import publisher as publisher_module
from callboard.middleware.publish.backlog import QueueBacklog, QueueBacklogs
from callboard.middleware.publish.publisher import Publisher
from callboard.sql.pool import Conn, Pool, connect, make_pool
from callboard.sql.reads import queries
from callboard.sql.rows import NewItem, Outgoing
from callboard.sql.writes import actions, jobs, retry, sends
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry import RetrySelection
from tests.support.jobs import make_job, make_worker, record
from tests.support.transports import StubTransport

ANNA = Requester("python", "anna")


class RefusingTransport(StubTransport):
    """A broker that refuses messages for the queues `refused`."""

    takes_chunks = True

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()
        self.sent: list[int] = []
        self.tried = 0

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        self.tried += len(batch)
        taken = [out.queue not in self.refused for out in batch]
        self.sent += [out.item for out, done in zip(batch, taken, strict=True) if done]
        return taken


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    """A connection to this test's database, in which nothing drifts."""
    with connect(database_url) as connection:
        make_worker(connection)
        yield connection
        assert queries.run(connection, queries.verify())["drift"] == []


@pytest.fixture
def pool(database_url: str) -> Iterator[Pool]:
    with make_pool(database_url, size=2) as made:
        yield made


@pytest.fixture
def transport() -> RefusingTransport:
    return RefusingTransport()


@pytest.fixture
def publisher(pool: Pool, transport: RefusingTransport) -> Publisher:
    """A publisher that polls for work, but whose rounds the test runs."""
    return Publisher(pool, transport, QueueBacklogs(transport), _polls=True)


def send(conn: Conn, job: int, item: int, queue: str) -> None:
    new = NewItem(job, "work", queue, f"m-{item}", b'{"args":[],"kwargs":{}}', None, 0)
    with conn.transaction():
        jobs.lock_jobs(conn, [job])
        sends.add_items(conn, [(item, new)], publishing=False)


def test_refused_messages_do_not_hold_up_others(
    conn: Conn, publisher: Publisher, transport: RefusingTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that has reached its length limit refuses messages; other queues go on."""
    monkeypatch.setattr(publisher_module, "OUTBOX_BATCH_MESSAGES", 2)
    transport.refused = {"full"}
    job = make_job(conn, 0, sealed=False)
    for item in range(3):
        send(conn, job, item, "full")
    send(conn, job, 3, "other")
    assert [publisher._round([], []) for _ in range(2)] == [False, True]
    assert transport.sent == [3]
    transport.refused = set()
    conn.execute("UPDATE callboard.outbox SET due_at = now()")
    for _ in range(2):
        publisher._round([], [])
    assert sorted(transport.sent) == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [{}, {"concurrency": 5}, {"concurrency_by": "0=5"}])
def test_a_round_in_which_all_was_refused_counts_as_no_work(
    conn: Conn, publisher: Publisher, transport: RefusingTransport, limit: dict[str, object]
) -> None:
    """Otherwise the next round would follow at once, again and again."""
    transport.refused = {"default"}
    job = make_job(conn, 5)
    record(conn, job, {"failed": range(5)})
    assert retry.retry(conn, job, ANNA, RetrySelection()) == 5
    actions.limit(conn, job, ANNA, limit)
    assert publisher._round([], []) is False
    assert transport.tried == 5
    transport.refused = set()
    assert publisher._round([], []) is True
    assert sorted(transport.sent) == [0, 1, 2, 3, 4]


def test_a_process_that_only_sends_does_not_poll_full_queues(
    publisher: Publisher, transport: RefusingTransport
) -> None:
    publisher._polls = False
    publisher.backlogs._backlogs["default"] = QueueBacklog(full_until=1.0)
    threading.Timer(0.15, publisher.wake).start()
    publisher._wait_for_work()
    assert transport.depth_calls == 0
