"""Rounds of the publisher, on a real database and a broker that refuses what a test says."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import dramatiq
import psycopg
import pytest

from callboard.middleware.journal.journal import Send, UncertainCommit
from callboard.middleware.process.process import Process
from callboard.middleware.publish import relay as relay_module
from callboard.middleware.publish.backlog import QueueBacklog, QueueBacklogs
from callboard.middleware.publish.publisher import Publisher
from callboard.middleware.publish.send_leases import SendLeases
from callboard.middleware.publish.transport import Answer, Unpublishable, Unreachable
from callboard.middleware.submission import send_store
from callboard.middleware.submission.enqueue import new_item
from callboard.middleware.submission.send_store import SendStore
from callboard.sql import timings
from callboard.sql.pool import Conn, connect, transaction
from callboard.sql.reads import queries
from callboard.sql.rows import NewItem, Outgoing
from callboard.sql.writes import actions, lanes, publishing, retry_action, sends, workers
from callboard.sql.writes.jobs import lock_jobs
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support.jobs import claim_outbox, make_job, make_worker, publish, record, status, unheld
from tests.support.process_parts import process_on
from tests.support.transports import StubTransport

ANNA = Requester("python", "anna")


class RefusingTransport(StubTransport):
    """A broker that refuses messages for the queues `refused`, and never takes those of the items `unpublishable`.

    It goes away after the item `last`.
    """

    takes_chunks = True

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()
        self.unpublishable: set[int] = set()
        self.last = 1_000_000
        self.sent: list[int] = []
        self.sizes: list[int] = []  # of the batches, in bytes of arguments
        self.carried: list[int] = []  # items of each message
        self.tried = 0

    def publish(self, batch: Sequence[Outgoing]) -> list[Answer]:
        self.tried += len(batch)
        self.carried += [1 + len(out.more) for out in batch]
        self.sizes.append(sum(len(one.args) for out in batch for one in (out, *out.more)))
        if self.while_waiting is not None:
            self.while_waiting()
        answers = [self._answer(out) for out in batch]
        self.sent += [
            one.item for out, answer in zip(batch, answers, strict=True) if answer is True for one in (out, *out.more)
        ]
        if any(out.item > self.last for out in batch):
            raise Unreachable("it is away", answers)
        return answers

    def _answer(self, out: Outgoing) -> Answer:
        if out.queue in self.refused or out.item > self.last:
            return False
        broken = self.unpublishable.intersection(one.item for one in (out, *out.more))
        return Unpublishable(f"{len(broken)} too large") if broken else True


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    """A connection to this test's database, in which nothing drifts."""
    with connect(database_url) as connection:
        make_worker(connection)
        yield connection
        assert queries.run(connection, queries.verify())["drift"] == []


@pytest.fixture
def process(database_url: str) -> Iterator[Process]:
    with process_on(database_url) as made:
        yield made


@pytest.fixture
def transport() -> RefusingTransport:
    return RefusingTransport()


@pytest.fixture
def publisher(process: Process, transport: RefusingTransport) -> Publisher:
    """A publisher that polls for work, but whose rounds the test runs."""
    return Publisher(process, transport, QueueBacklogs(transport), SendLeases(), _polls=True)


def send(conn: Conn, job: int, item: int, queue: str) -> None:
    new = NewItem(job, "work", queue, f"m-{item}", b'{"args":[],"kwargs":{}}', None, 0)
    assert sends.add_items(conn, [new], publishing=False, children=[True]) == [(item, None)]


def sent(conn: Conn, process: Process, leases: SendLeases, count: int, *, actor: str = "work") -> list[Outgoing]:
    """Plain sends that a process has stored, and publishes."""
    stored: list[Send] = []
    for number in range(count):
        message: dramatiq.Message[None] = dramatiq.Message("default", actor, (number,), {}, {})
        stored.append(Send(new_item(message, job=0)))
    SendStore(process, leases, lambda _: None).store(conn, stored)
    return [send.stored.result(0) for send in stored]


def queue_lapsed(conn: Conn) -> list[bool]:
    """What a sweep does; whether each job with lapsed leases could be locked."""
    return sorted(sends.queue_lapsed_sends(conn, job, leases) for job, leases in sends.lapsed_send_leases(conn))


def counts(conn: Conn) -> tuple[int, int]:
    """How many leases there are, and messages in the outbox."""
    (found,) = conn.execute("SELECT (SELECT count(*) FROM callboard.send_leases), count(*) FROM callboard.outbox")
    return found


@pytest.mark.parametrize("how", ["bulk", "chunks", "sent", "in turn", "in lanes"])
def test_a_publisher_reads_no_more_bytes_at_a_time_than_it_may(
    how: str, conn: Conn, publisher: Publisher, transport: RefusingTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand messages of a mebibyte each would be a gibibyte in every worker."""
    for module in (publishing, lanes):
        monkeypatch.setattr(module, "BATCH_BYTES", 10_000)
    if how == "sent":
        job = make_job(conn, 0, sealed=False)
        for item in range(20):
            send(conn, job, item, "default")
    else:
        limits: dict[str, dict[str, Any]] = {"in lanes": {"concurrency_by": "0=20"}, "in turn": {"concurrency": 50}}
        job = make_job(conn, 20, published=0 if how != "in turn" else None)
        if how == "in turn":
            record(conn, job, {"failed": range(20)})
            retry_action.retry(conn, job, ANNA, RetrySelection())
        actions.limit(conn, job, ANNA, limits.get(how, {}))
        if how == "chunks":
            conn.execute("UPDATE callboard.jobs SET chunk = 20")
    args = b'{"args":["%s"],"kwargs":{}}' % (b"x" * 3_000)
    conn.execute("UPDATE callboard.items SET args = %s", (args,))
    for _ in range(20):
        publisher._round([], [])
    assert sorted(transport.sent) == list(range(20))
    # As many as have 10,000 bytes, the last one included.
    assert set(transport.sizes) == {4 * len(args)}


def test_refused_messages_do_not_hold_up_others(
    conn: Conn, publisher: Publisher, transport: RefusingTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that has reached its length limit refuses messages; other queues go on."""
    monkeypatch.setattr(relay_module, "OUTBOX_BATCH_MESSAGES", 2)
    monkeypatch.setattr(relay_module, "REFUSED_PAUSE_SECONDS", 600.0)
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


def test_what_a_worker_sends_goes_out_as_its_queue_has_room(
    conn: Conn, process: Process, transport: RefusingTransport
) -> None:
    """Else what one item sends lies before all that others have; the rest waits for its turn, sent by nobody yet."""
    leases = SendLeases()
    publisher = Publisher(process, transport, QueueBacklogs(transport, 10), leases, _polls=True)
    added = sent(conn, process, leases, 40)
    assert publisher._round(added, []) is True
    assert len(transport.sent) == 20  # ten from here, and ten of its turn
    left = "SELECT count(*), bool_or(suspect), bool_or(claimed_until IS NOT NULL) FROM callboard.outbox"
    assert conn.execute(left).fetchone() == (20, False, False)
    assert conn.execute("SELECT published FROM callboard.jobs").fetchone() == (20,)


def test_what_a_process_sends_is_published_without_a_row_in_the_outbox(
    conn: Conn, process: Process, transport: RefusingTransport
) -> None:
    """A row for each that is deleted at once would cost more than the item's own."""
    leases = SendLeases()
    publisher = Publisher(process, transport, QueueBacklogs(transport), leases)
    added = sent(conn, process, leases, 2)
    assert counts(conn) == (1, 0)
    assert publisher._round(added, []) is True
    assert transport.sent == [0, 1]
    added = sent(conn, process, leases, 1)
    leases.maintain(conn, closing=True)
    assert counts(conn) == (1, 0)  # of the last nobody knows yet
    publisher._round(added, [])
    leases.maintain(conn, closing=True)
    assert counts(conn) == (0, 0)


def test_a_send_is_published_though_its_sender_gave_up(conn: Conn, process: Process) -> None:
    """A time limit may strike it while it waits for its row; its lease would be renewed for ever."""
    published: list[Outgoing] = []
    message: dramatiq.Message[None] = dramatiq.Message("default", "work", (), {}, {})
    given_up = Send(new_item(message, job=0))
    SendStore(process, SendLeases(), published.append).store(conn, [given_up])
    assert [out.message_id for out in published] == [message.message_id]


def test_a_send_that_may_be_committed_is_not_stored_again(
    conn: Conn, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PgBouncer loses its connection to a server that has committed, and answers with a code of its own."""

    def add_items(*given: Any, **options: Any) -> None:
        sends.add_items(*given, **options)
        raise psycopg.errors.ProtocolViolation("server conn crashed?")

    monkeypatch.setattr(send_store, "add_items", add_items)
    message: dramatiq.Message[None] = dramatiq.Message("default", "work", (), {}, {})
    with pytest.raises(UncertainCommit):
        SendStore(process, SendLeases(), lambda _: None).store(conn, [Send(new_item(message, job=0))])


def test_an_error_of_something_else_leaves_the_leases_of_what_is_published(
    conn: Conn, process: Process, transport: RefusingTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If they lapsed, all of it would be sent a second time."""
    leases = SendLeases()
    publisher = Publisher(process, transport, QueueBacklogs(transport), leases, _polls=True)
    monkeypatch.setattr(publishing, "due_queues", lambda *_: 1 // 0)
    added = sent(conn, process, leases, 1)
    with pytest.raises(ZeroDivisionError):
        publisher._round(added, [])
    leases.maintain(conn, closing=True)
    assert counts(conn) == (0, 0)


@pytest.mark.parametrize("away", [False, True])
def test_what_a_process_can_not_publish_goes_into_the_outbox(
    away: bool, conn: Conn, process: Process, transport: RefusingTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as published no more, so the job doesn't say that it lies in the queue. It may lie there: suspect."""
    monkeypatch.setattr(relay_module, "REFUSED_PAUSE_SECONDS", 0.0)
    leases = SendLeases()
    publisher = Publisher(process, transport, QueueBacklogs(transport), leases)
    added = sent(conn, process, leases, 3)
    transport.last, transport.refused = (0, set()) if away else (3, {"default"})
    with pytest.raises(Unreachable) if away else nullcontext():
        assert publisher._round(added, []) is False
    waiting = "SELECT array_agg(item ORDER BY item), bool_and(suspect AND first) FROM callboard.outbox"
    assert conn.execute(waiting).fetchone() == ([1, 2] if away else [0, 1, 2], True)
    assert conn.execute("SELECT published FROM callboard.jobs").fetchone() == (1 if away else 0,)
    leases.maintain(conn, closing=True)
    assert counts(conn)[0] == 0


def test_a_process_that_can_not_reach_its_broker_leaves_what_it_sends_to_others(
    conn: Conn, process: Process, transport: RefusingTransport
) -> None:
    leases = SendLeases()
    publisher = Publisher(process, transport, QueueBacklogs(transport), leases)
    publisher._added.extend(sent(conn, process, leases, 3))
    publisher._closing = True
    publisher._hold_up(Unreachable("it is away"))
    assert counts(conn) == (1, 3)
    assert [(out.item, out.suspect) for out in claim_outbox(conn, 10)] == [(n, False) for n in range(3)]
    assert not publisher._added


def test_what_a_process_that_vanished_had_stored_is_published_by_others(
    conn: Conn, process: Process, transport: RefusingTransport
) -> None:
    """All that waits under its lease, for nobody knows what it has published: as suspect, so that none runs twice."""
    added = sent(conn, process, SendLeases(), 4)
    other = SendLeases()
    theirs = sent(conn, process, other, 1)
    record(conn, added[0].job, {"succeeded": [1]})
    assert queue_lapsed(conn) == []
    conn.execute("UPDATE callboard.send_leases SET ends_at = now() WHERE id = %s", (added[0].lease,))
    assert queue_lapsed(conn) == [True]
    assert counts(conn) == (1, 3)
    assert conn.execute("SELECT published FROM callboard.jobs").fetchone() == (2,)
    assert [(out.item, out.suspect) for out in claim_outbox(conn, 10)] == [(n, True) for n in (0, 2, 3)]
    assert theirs[0].item == 4


def test_what_a_locked_job_was_sent_is_queued_later(
    conn: Conn, process: Process, transport: RefusingTransport, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that somebody holds on one item stops neither the publisher nor the sweep, nor what others have sent."""
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
    leases = SendLeases()
    publisher = Publisher(process, transport, QueueBacklogs(transport), leases)
    locked, free = sent(conn, process, leases, 2), sent(conn, process, leases, 1, actor="other")
    with connect(database_url) as other, transaction(other):
        other.execute("SELECT FROM callboard.items WHERE job_id = %s FOR UPDATE", (locked[0].job,))
        publisher._relay.queue_sends(conn, locked + free, tried=False)
        assert [out.job for out in claim_outbox(conn, 10)] == [free[0].job]
        conn.execute("UPDATE callboard.send_leases SET ends_at = now()")
        assert queue_lapsed(conn) == [False, True]
    assert queue_lapsed(conn) == [True]
    assert {out.item for out in claim_outbox(conn, 10)} == {0, 1}


def test_a_send_does_not_join_a_lease_that_was_ended(conn: Conn, process: Process) -> None:
    """Its process froze for longer than the lease held: nobody would look for what is stored under it."""
    leases = SendLeases()
    (first,) = sent(conn, process, leases, 1)
    conn.execute("UPDATE callboard.send_leases SET ends_at = now()")
    assert queue_lapsed(conn) == [True]
    (second,) = sent(conn, process, leases, 1)
    assert second.lease != first.lease
    assert counts(conn) == (1, 1)


def test_a_send_does_not_wait_for_a_lease_that_somebody_ends(conn: Conn, process: Process, database_url: str) -> None:
    leases = SendLeases()
    (first,) = sent(conn, process, leases, 1)
    with connect(database_url) as other, transaction(other):
        sends.end_send_leases(other, [first.lease or 0])
        (second,) = sent(conn, process, leases, 1)
    assert second.lease != first.lease


def test_a_lease_that_somebody_has_locked_holds_up_no_publisher(
    conn: Conn, process: Process, database_url: str
) -> None:
    """It would publish nothing of any job meanwhile."""
    leases = SendLeases()
    leases.settle(sent(conn, process, leases, 1))
    conn.execute("SET lock_timeout = '5s'")  # else a publisher that waits would wait for this test
    with connect(database_url) as other, transaction(other):
        other.execute("SELECT FROM callboard.send_leases FOR UPDATE")
        leases.maintain(conn, closing=True)
        assert counts(conn) == (1, 0)
    leases.maintain(conn, closing=True)
    assert counts(conn) == (0, 0)


def test_what_its_process_is_publishing_is_not_lost(conn: Conn, process: Process) -> None:
    """A copy would run unasked beside the message that comes after it."""
    added = sent(conn, process, SendLeases(), 3)
    assert unheld(conn, added[0].job, 10) == []
    conn.execute("DELETE FROM callboard.send_leases")
    assert [item for item, _ in unheld(conn, added[0].job, 10)] == [0, 1, 2]


@pytest.mark.parametrize("limit", [{}, {"concurrency": 5}, {"concurrency_by": "0=5"}])
def test_a_round_in_which_all_was_refused_counts_as_no_work(
    conn: Conn, publisher: Publisher, transport: RefusingTransport, limit: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Otherwise the next round would follow at once, again and again."""
    monkeypatch.setattr(relay_module, "REFUSED_PAUSE_SECONDS", 0.0)
    transport.refused = {"default"}
    job = make_job(conn, 5)
    record(conn, job, {"failed": range(5)})
    assert retry_action.retry(conn, job, ANNA, RetrySelection()) == 5
    actions.limit(conn, job, ANNA, limit)
    assert publisher._round([], []) is False
    assert transport.tried == 5
    transport.refused = set()
    assert publisher._round([], []) is True
    assert sorted(transport.sent) == [0, 1, 2, 3, 4]


def test_other_messages_go_out_between_two_looks_at_a_job_that_is_locked(
    conn: Conn, publisher: Publisher, transport: RefusingTransport, database_url: str
) -> None:
    held, other = make_job(conn, 5, published=0), make_job(conn, 10)
    with connect(database_url) as locking, locking.transaction():
        lock_jobs(locking, [held])
        assert publisher._round([], []) is True
        record(conn, other, {"retrying": [9]}, delay=0.0)
        assert publisher._round([], []) is True
        assert transport.sent == [9]
        looks = 3
        while publisher._round([], []):
            looks += 1
        assert looks == relay_module.LOCKED_JOB_LOOKS, "then it waits until the next poll"
    assert publisher._round([], []) is True
    assert transport.sent == [9, 0, 1, 2, 3, 4]


def test_a_process_that_only_sends_does_not_poll_full_queues(
    publisher: Publisher, transport: RefusingTransport
) -> None:
    publisher._polls = False
    publisher.backlogs._backlogs["default"] = QueueBacklog(full_until=1.0)
    threading.Timer(0.15, publisher.wake, [0.0]).start()
    publisher._wait_for_work()
    assert transport.depth_calls == 0


# What can't be published --------------------------------------------------------------------------------------------

BROKEN = ("failed", False, "Unpublishable", "1 too large", None)


def attempts(conn: Conn, job: int, item: int) -> list[tuple[object, ...]]:
    """The attempts of an item: kind, whether it was retried, type, message, worker."""
    rows = conn.execute(
        "SELECT kind::text, retried, error_type, message, worker FROM callboard.attempts"
        " WHERE job_id = %s AND item = %s ORDER BY attempt",
        (job, item),
    )
    return rows.fetchall()


def in_outbox(conn: Conn) -> list[int]:
    """The items of which a message is in the outbox."""
    return [item for (item,) in conn.execute("SELECT item FROM callboard.outbox ORDER BY item")]


def test_a_message_of_the_outbox_that_cant_be_published_fails_its_item_alone(
    conn: Conn, publisher: Publisher, transport: RefusingTransport
) -> None:
    job = make_job(conn, 0, sealed=False)
    for item in range(3):
        send(conn, job, item, "default")
    transport.unpublishable = {1}
    assert publisher._round([], []) is True
    assert transport.sent == [0, 2]
    assert in_outbox(conn) == []
    assert attempts(conn, job, 1) == [BROKEN]
    found = status(conn, job)
    assert (found["failed"], found["queued"], found["pending"]) == (1, 2, 0)


@pytest.mark.parametrize("limit", [{}, {"concurrency": 5}, {"concurrency_by": "0=5"}])
def test_a_retry_that_cant_be_published_fails_its_item_alone(
    conn: Conn, publisher: Publisher, transport: RefusingTransport, limit: dict[str, object]
) -> None:
    job = make_job(conn, 5)
    actions.limit(conn, job, ANNA, limit)
    record(conn, job, {"retrying": range(3)}, delay=0.0)
    record(conn, job, {"failed": [3, 4]})
    assert retry_action.retry(conn, job, ANNA, RetrySelection()) == 2
    transport.unpublishable = {1, 3}
    while publisher._round([], []):
        continue
    assert sorted(transport.sent) == [0, 2, 4]
    assert in_outbox(conn) == []
    assert attempts(conn, job, 1)[1:] == attempts(conn, job, 3)[1:] == [BROKEN]
    found = status(conn, job)
    assert (found["failed"], found["queued"], found["retrying"]) == (2, 3, 0)
    record(conn, job, {"succeeded": [0, 2, 4]}, attempt=2)
    assert status(conn, job)["state"] == "completed"


def test_a_message_carries_what_its_actor_does_in_a_short_time(
    conn: Conn, publisher: Publisher, transport: RefusingTransport
) -> None:
    """The worker of these jobs has 8 threads. Each message carries one item of an actor that nobody has seen, of a job
    that asks for it, and of a job with as few items as threads.
    """

    def messages(items: int, chunk: int | None = None, concurrency: int | None = None) -> list[int]:
        job = make_job(conn, items, published=0)
        conn.execute("UPDATE callboard.jobs SET chunk = %s WHERE id = %s", (chunk, job))
        actions.limit(conn, job, ANNA, {"concurrency": concurrency})
        before = len(transport.carried)
        while publisher._round([], []):
            continue
        actions.cancel(conn, job, ANNA)
        return transport.carried[before:]

    assert messages(100) == [1] * 100
    workers.report_means(conn, {"work": 0.0029, "nobody has": 1.0})
    found = messages(500)
    assert sum(found) == 500
    assert found[:35] == [10] * 35
    assert found[-31:] == [1] * 31
    assert messages(8) == [1] * 8
    assert messages(500, chunk=1) == [1] * 500
    assert messages(500, concurrency=16) == [1] * 16
    workers.report_means(conn, {"work": 0.2})
    assert messages(500) == [1] * 500
    for _ in range(8):
        workers.report_means(conn, {"work": 0.0029})
    assert messages(500)[0] > 5


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_bulk_item_that_cant_be_published_fails_alone(
    conn: Conn, publisher: Publisher, transport: RefusingTransport, chunk: int | None
) -> None:
    job = make_job(conn, 8, published=0)
    conn.execute("UPDATE callboard.jobs SET chunk = %s", (chunk,))
    transport.unpublishable = {0, 4}
    assert publisher._round([], []) is True
    assert sorted(transport.sent) == [1, 2, 3, 5, 6, 7]
    assert attempts(conn, job, 0) == attempts(conn, job, 4) == [BROKEN]
    found = status(conn, job)
    assert (found["failed"], found["queued"], found["pending"]) == (2, 6, 0)
    record(conn, job, {"succeeded": transport.sent})
    assert status(conn, job)["state"] == "completed"


def test_a_bulk_item_that_cant_be_published_fails_once_when_the_broker_goes_away_behind_it(
    conn: Conn, publisher: Publisher, transport: RefusingTransport
) -> None:
    job = make_job(conn, 8, published=0)
    transport.unpublishable, transport.last = {1, 5}, 3
    with pytest.raises(Unreachable):
        publisher._round([], [])
    found = status(conn, job)
    assert (found["failed"], found["queued"], found["pending"]) == (1, 3, 4)
    transport.last = 1_000_000
    assert publisher._round([], []) is True
    assert transport.sent == [0, 2, 3, 4, 6, 7]
    found = status(conn, job)
    assert (found["failed"], found["queued"], found["pending"]) == (2, 6, 0)
    assert attempts(conn, job, 1) == attempts(conn, job, 5) == [BROKEN]


def test_items_that_cant_be_published_count_for_max_failures(
    conn: Conn, publisher: Publisher, transport: RefusingTransport
) -> None:
    job = make_job(conn, 8, published=0)
    actions.limit(conn, job, ANNA, {"max_failures": 1})
    transport.unpublishable = {1, 5}
    publisher._round([], [])
    row = conn.execute("SELECT stopping::text FROM callboard.jobs").fetchone()
    assert row == ("failed",)


# A slow broker ------------------------------------------------------------------------------------------------------


def postpone_ends_of_claims(conn: Conn) -> None:
    """Let all claims expire in an hour, and not when they are renewed."""
    conn.execute("UPDATE callboard.jobs SET publish_until = now() + interval '1 h' WHERE publish_until IS NOT NULL")
    conn.execute("UPDATE callboard.outbox SET claimed_until = now() + interval '1 h' WHERE claimed_until IS NOT NULL")


@pytest.mark.parametrize("kind", ["bulk", "sent", "redo", "lanes"])
def test_claims_are_renewed_while_the_broker_is_slow(
    conn: Conn, publisher: Publisher, transport: RefusingTransport, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whether the claims hold for as long as new ones, after the transport has waited."""
    job = make_job(conn, 0 if kind == "sent" else 3, published=0, sealed=False)
    if kind == "sent":
        send(conn, job, 0, "default")
    elif kind == "lanes":
        actions.limit(conn, job, ANNA, {"concurrency_by": "0=5"})
    elif kind == "redo":
        publish(conn, job, 3)
        record(conn, job, {"failed": range(3)})
        retry_action.retry(conn, job, ANNA, RetrySelection())
    left: list[tuple[object, ...]] = []
    publish_batch = RefusingTransport.publish

    def slow(transport: RefusingTransport, batch: Sequence[Outgoing]) -> list[Answer]:
        postpone_ends_of_claims(conn)
        answers = publish_batch(transport, batch)
        row = conn.execute(
            "SELECT (SELECT max(publish_until) - now() <= s.lease FROM callboard.jobs),"
            " (SELECT max(claimed_until) - now() <= s.lease FROM callboard.outbox)"
            " FROM make_interval(secs => %s) AS s (lease)",
            (timings.PUBLISH_LEASE_SECONDS,),
        ).fetchone()
        left.append(row or ())
        return answers

    monkeypatch.setattr(RefusingTransport, "publish", slow)
    assert publisher._round([], []) is True
    assert left == [(None if kind == "sent" else True, None if kind == "bulk" else True)]


def test_a_claim_that_expired_is_not_renewed(conn: Conn) -> None:
    """Another publisher may have it by now."""
    job = make_job(conn, 0, sealed=False)
    send(conn, job, 0, "default")
    claimed = claim_outbox(conn, 10)
    conn.execute("UPDATE callboard.outbox SET claimed_until = now() - interval '1 s'")
    publishing.renew_outbox(conn, claimed)
    assert [out.suspect for out in claim_outbox(conn, 10)] == [True]
