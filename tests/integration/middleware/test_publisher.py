"""The publisher's turns, on a real database and a broker that takes what a test wants."""

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
from callboard.sql.writes.actions import Requester
from callboard.sql.writes.retry import RetrySelection
from tests.support.jobs import make_job, make_worker, record
from tests.support.transports import StubTransport

ANNA = Requester("python", "anna")


class Picky(StubTransport):
    """A broker that refuses messages for some queues."""

    carries = True

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
def transport() -> Picky:
    return Picky()


@pytest.fixture
def publisher(pool: Pool, transport: Picky) -> Publisher:
    """One that looks for work, whose turns the test takes."""
    return Publisher(pool, transport, QueueBacklogs(transport), _looking=True)


def send(conn: Conn, job: int, item: int, queue: str) -> None:
    new = NewItem(job, "work", queue, f"m-{item}", b'{"args":[],"kwargs":{}}', None, 0)
    with conn.transaction():
        jobs.lock_jobs(conn, [job])
        sends.add_items(conn, [(item, new)], publishing=False)


def test_messages_that_rabbitmq_refuses_hold_up_no_others(
    conn: Conn, publisher: Publisher, transport: Picky, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue may have a length at which it takes no more: what is for others goes on."""
    monkeypatch.setattr(publisher_module, "OUTBOX_BATCH", 2)
    transport.refused = {"full"}
    job = make_job(conn, 0, sealed=False)
    for item in range(3):
        send(conn, job, item, "full")
    send(conn, job, 3, "other")
    assert [publisher._turn([], []) for _ in range(2)] == [False, True]
    assert transport.sent == [3]
    transport.refused = set()
    conn.execute("UPDATE callboard.outbox SET due_at = now()")
    for _ in range(2):
        publisher._turn([], [])
    assert sorted(transport.sent) == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [{}, {"concurrency": 5}, {"concurrency_by": "0=5"}])
def test_a_turn_in_which_all_was_refused_is_no_work(
    conn: Conn, publisher: Publisher, transport: Picky, limit: dict[str, object]
) -> None:
    """Else the next would come at once, again and again."""
    transport.refused = {"default"}
    job = make_job(conn, 5)
    record(conn, job, {"failed": range(5)})
    assert retry.retry(conn, job, ANNA, RetrySelection()) == 5
    actions.limit(conn, job, ANNA, limit)
    assert publisher._turn([], []) is False
    assert transport.tried == 5
    transport.refused = set()
    assert publisher._turn([], []) is True
    assert sorted(transport.sent) == [0, 1, 2, 3, 4]


def test_who_only_publishes_what_it_stored_asks_for_nobodys_room(
    publisher: Publisher, transport: Picky
) -> None:
    publisher._looking = False
    publisher.backlogs._backlogs["default"] = QueueBacklog(full_until=1.0)
    threading.Timer(0.15, publisher.nudge).start()
    publisher._rest()
    assert transport.asked == 0
