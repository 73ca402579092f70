"""The search for lost messages, on a real database and a broker that answers as a test sets it."""

from collections.abc import Iterator
from typing import Any

import pytest

from callboard.middleware.publish.transport import Unreachable
from callboard.middleware.sweep import lost_messages
from callboard.middleware.sweep.lost_messages import LostMessageSearch
from callboard.sql.pool import Conn, connect
from callboard.sql.statements import statement, with_timings
from callboard.sql.writes import claims, publishing, sweep
from callboard.sql.writes.workers import beat
from tests.support.jobs import claim_outbox, make_job, make_worker, publish, record, run, send
from tests.support.transports import StubTransport

LEADER = "the one that sweeps"


class Queue(StubTransport):
    """A broker that has `ready` messages in every queue."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: int | None = 0
        self.away = False

    def depth(self, queue: str) -> int | None:
        super().depth(queue)
        if self.away:
            raise Unreachable("it is away")
        return self.ready


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    with connect(database_url) as connection:
        assert sweep.acquire_lease(connection, LEADER, 600, 600)
        yield connection


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def search(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> LostMessageSearch:
    monkeypatch.setattr(lost_messages, "REPORT_AGE_SECONDS", 0.0)
    return LostMessageSearch(lambda: queue)


def look(conn: Conn, search: LostMessageSearch, *workers: int, times: int = 3, holds: Any = ()) -> None:
    """Search so many times, with a heartbeat of these workers before and a second in between."""
    for _ in range(times):
        for worker in workers:
            beat(conn, worker, holds)
        search.run(conn, LEADER)
        conn.execute("UPDATE callboard.workers SET beat_at = beat_at - interval '1 s'")
        for missing in search._suspects.missing.values():
            missing.since -= 1


def sent_again(conn: Conn, job: int) -> list[int]:
    rows = conn.execute("SELECT item FROM callboard.outbox WHERE job_id = %s ORDER BY 1", (job,))
    return [row[0] for row in rows]


def test_an_item_that_its_worker_does_not_run_any_more_is_sent_again(conn: Conn, search: LostMessageSearch) -> None:
    """A failover took back its outcome, and left its row in `running`. One that is held, or began just now, stays."""
    worker = make_worker(conn)
    job = make_job(conn, 3)
    run(conn, job, range(3), worker=worker)
    conn.execute("UPDATE callboard.running SET started_at = now() - interval '1 h' WHERE item < 2")
    beat(conn, worker, [(job, 1)])
    sweep.drop_unheld_running(conn)
    assert conn.execute("SELECT item FROM callboard.running ORDER BY 1").fetchall() == [(1,), (2,)]
    look(conn, search, worker, times=5, holds=[(job, 1)])
    assert sent_again(conn, job) == [0]


def test_a_message_that_no_queue_and_no_worker_has_is_sent_again_once(conn: Conn, search: LostMessageSearch) -> None:
    """Items that ended, wait in the outbox, run, are held or are not published are left alone."""
    worker = make_worker(conn)
    job = make_job(conn, 20, published=12)
    record(conn, job, {"succeeded": [0, 1], "failed": [2], "skipped": [3], "retrying": [4]}, worker=worker)
    run(conn, job, [5, 6], worker=worker)
    look(conn, search, worker, times=2, holds=[(job, 7), (job, 8)])
    assert sent_again(conn, job) == [4]
    look(conn, search, worker, times=1, holds=[(job, 7), (job, 8)])
    assert sent_again(conn, job) == [4, 9, 10, 11]
    conn.execute("UPDATE callboard.outbox SET due_at = now()")
    again = {out.item: out for out in claim_outbox(conn, 10)}
    assert all(again[item].suspect and again[item].attempt == 1 for item in (9, 10, 11))
    look(conn, search, worker, times=4, holds=[(job, 7), (job, 8)])
    assert sent_again(conn, job) == [4, 9, 10, 11]


@pytest.mark.parametrize("back", ["given back", "without its actor"])
def test_a_message_that_came_back_waits_behind_those_that_were_sent_before_it_came(
    back: str, conn: Conn, search: LostMessageSearch, queue: Queue
) -> None:
    """One that is lost beside it is found later."""
    worker = make_worker(conn)
    job = make_job(conn, 10)
    queue.ready = 2
    look(conn, search, worker, times=2)
    if back == "given back":
        claims.park(conn, [(job, 3, 1)])
    else:
        claims.postpone(conn, job, 3, 1, "work")
    other = make_job(conn, 2)
    conn.execute("UPDATE callboard.outbox SET due_at = now()")
    publishing.confirm_outbox(conn, claim_outbox(conn, 10))
    assert sent_again(conn, job) == []
    record(conn, job, {"succeeded": [0, 1, 2, *range(5, 10)]}, worker=worker)
    record(conn, other, {"succeeded": [0]}, worker=worker)  # item 4 of the first is lost, 3 and this one's 1 are queued
    look(conn, search, worker, times=4)
    assert sent_again(conn, job) == []
    third = make_job(conn, 1)
    record(conn, job, {"succeeded": [3]}, worker=worker)
    record(conn, third, {"succeeded": [0]}, worker=worker)
    look(conn, search, worker, times=4)
    assert sent_again(conn, job) == [4]


def test_a_message_that_waits_in_its_queue_is_left_alone(conn: Conn, search: LostMessageSearch, queue: Queue) -> None:
    worker = make_worker(conn)
    job = make_job(conn, 10)
    sent = make_job(conn, 0, sealed=False)
    for item in range(3):
        send(conn, sent, item)
    publishing.confirm_outbox(conn, claim_outbox(conn, 10))
    queue.ready = 13
    for done in range(9):
        look(conn, search, worker, times=2)
        record(conn, job, {"succeeded": [done]}, worker=worker)
        queue.ready -= 1
    look(conn, search, worker, times=4)
    assert sent_again(conn, job) == sent_again(conn, sent) == []
    queue.ready = 0
    look(conn, search, worker)
    assert (sent_again(conn, job), sent_again(conn, sent)) == ([9], [0, 1, 2])


def test_in_a_queue_that_is_never_empty_overtaken_messages_are_sent_again(
    conn: Conn, search: LostMessageSearch, queue: Queue
) -> None:
    """JobChanged by a later item of its job, beyond the publisher's window, or by an item of a later job."""
    worker = make_worker(conn)
    job = make_job(conn, 3_000, published=100)
    queue.ready = 50
    record(conn, job, {"succeeded": range(90)}, worker=worker)
    look(conn, search, worker)
    record(conn, job, {"succeeded": range(95, 100)}, worker=worker)
    publish(conn, job, 2_000)
    record(conn, job, {"succeeded": range(100, 1_099)}, worker=worker)
    # One that was cancelled was never given out.
    conn.execute(
        "UPDATE callboard.items SET state = 'cancelled', finished_at = now() WHERE job_id = %s AND item = 1101", (job,)
    )
    look(conn, search, worker, times=5)
    assert sent_again(conn, job) == []
    record(conn, job, {"succeeded": [1_100]}, worker=worker)
    look(conn, search, worker, times=4)
    assert sent_again(conn, job) == list(range(90, 95))
    other = make_job(conn, 2)
    look(conn, search, worker, times=5)
    assert sent_again(conn, job) == list(range(90, 95))
    record(conn, other, {"succeeded": [0]}, worker=worker)
    look(conn, search, worker, times=4)
    assert sent_again(conn, job) == [*range(90, 95), 1_099, *range(1_102, 2_000)]
    assert sent_again(conn, other) == []


@pytest.mark.parametrize(("later", "found"), [("default", True), ("another", False)])
def test_a_plain_send_overtakes_in_its_own_queue_only(
    conn: Conn, search: LostMessageSearch, queue: Queue, later: str, found: bool
) -> None:
    worker = make_worker(conn)
    job = make_job(conn, 0, sealed=False)
    send(conn, job, 0)
    publishing.confirm_outbox(conn, claim_outbox(conn, 10))
    queue.ready = 5
    look(conn, search, worker, times=1)
    send(conn, job, 1)
    conn.execute("UPDATE callboard.items SET queue = %s WHERE job_id = %s AND item = 1", (later, job))
    publishing.confirm_outbox(conn, claim_outbox(conn, 10))
    record(conn, job, {"succeeded": [1]}, worker=worker)
    look(conn, search, worker, times=4)
    assert sent_again(conn, job) == ([0] if found else [])


def test_a_queue_that_keeps_no_order_has_to_be_empty(conn: Conn, search: LostMessageSearch, queue: Queue) -> None:
    job = make_job(conn, 2)
    queue.ready, queue.in_order = 1, False
    look(conn, search, times=2)
    later = make_job(conn, 1)
    record(conn, later, {"succeeded": [0]})
    look(conn, search, times=4)
    assert sent_again(conn, job) == []
    queue.ready = None  # it can't tell
    look(conn, search, times=4)
    assert sent_again(conn, job) == []


def test_every_live_worker_must_report_twice_what_it_holds(conn: Conn, search: LostMessageSearch) -> None:
    """A worker that was frozen has not read its messages yet when it beats for the first time."""
    one, frozen = make_worker(conn), make_worker(conn)
    job = make_job(conn, 1)
    look(conn, search, one, times=6)
    assert sent_again(conn, job) == []
    look(conn, search, one, frozen, times=1)
    look(conn, search, one, frozen, times=1, holds=[(job, 0)])
    look(conn, search, one, frozen, times=2)
    assert sent_again(conn, job) == []
    conn.execute("UPDATE callboard.workers SET died_at = now() WHERE id = %s", (frozen,))
    look(conn, search, one)
    assert sent_again(conn, job) == [0]


def test_a_process_without_the_lease_sends_nothing(conn: Conn, search: LostMessageSearch) -> None:
    job = make_job(conn, 1)
    look(conn, search, times=2)
    conn.execute("UPDATE callboard.leases SET until = now() - interval '1 s'")
    look(conn, search, times=4)
    assert sent_again(conn, job) == []
    assert sweep.acquire_lease(conn, "another", 600, 600)
    look(conn, search, times=4)
    assert sent_again(conn, job) == []
    assert not sweep.renew_lease(conn, LEADER, 600, 600)


def test_a_broker_that_is_away_is_asked_again(conn: Conn, search: LostMessageSearch, queue: Queue) -> None:
    job = make_job(conn, 1)
    queue.away = True
    look(conn, search, times=4)
    assert (queue.depth_calls, sent_again(conn, job)) == (4, [])
    queue.away = False
    look(conn, search)
    assert sent_again(conn, job) == [0]


def test_the_broker_is_not_asked_while_no_message_is_open(conn: Conn, search: LostMessageSearch, queue: Queue) -> None:
    record(conn, make_job(conn, 5), {"succeeded": range(5)})
    paused = make_job(conn, 1)
    conn.execute("UPDATE callboard.jobs SET state = 'paused' WHERE id = %s", (paused,))
    stopped = make_job(conn, 1)
    conn.execute("UPDATE callboard.jobs SET stopping = 'cancelled' WHERE id = %s", (stopped,))
    look(conn, search)
    assert queue.depth_calls == 0
    assert sent_again(conn, paused) == sent_again(conn, stopped) == []


def test_a_large_job_is_searched_a_range_at_a_time(
    conn: Conn, search: LostMessageSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end comes first, where most of a loss lies; children are numbered after the bulk items."""
    monkeypatch.setattr(lost_messages, "RANGE_ITEMS", 100)
    monkeypatch.setattr(lost_messages, "STILL_SECONDS", 600.0)  # else more of it is searched at a time
    job = make_job(conn, 1_000)
    kept = {5, 555, 950}
    record(conn, job, {"succeeded": [item for item in range(1_000) if item not in kept]})
    look(conn, search)
    assert sent_again(conn, job) == [950]
    look(conn, search, times=9)
    assert sent_again(conn, job) == [5, 555, 950]


def test_the_search_never_reads_a_whole_job(conn: Conn) -> None:
    job = make_job(conn, 20_000)
    make_job(conn, 20_000)
    record(conn, job, {"succeeded": range(19_000)}, result=None)
    conn.execute("ANALYZE callboard.items")
    some = {"job": [job], "low": [18_000], "high": [19_500], "limit": 100}
    lost_messages = {
        "job": [job],
        "item": list(range(19_000, 19_500)),
        "attempt": [1] * 500,
        "holder": LEADER,
        "given_back": None,
    }
    for name, parameters in (("unheld_items", some), ("republish", lost_messages)):
        explain = b"EXPLAIN " + statement(name).encode()
        plan = "\n".join(row[0] for row in conn.execute(explain, with_timings(parameters)))
        assert "Seq Scan on items" not in plan
        assert "items_pkey" in plan


def test_a_long_queue_does_not_stop_the_search_of_another(
    conn: Conn, search: LostMessageSearch, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_messages, "QUEUE_SUSPECTS", 10)
    waiting, gone = make_job(conn, 20), make_job(conn, 1)
    conn.execute("UPDATE callboard.jobs SET queue = 'long' WHERE id = %s", (waiting,))
    monkeypatch.setattr(queue, "depth", {"long": 20, "default": 0}.get)
    look(conn, search, times=4)
    assert (sent_again(conn, waiting), sent_again(conn, gone)) == ([], [0])
    assert len(search._suspects.queued["long"]) == 10


def test_what_workers_hold_is_unpacked_once(conn: Conn) -> None:
    """An array that was unpacked for each element made a statement of 3.2 s of 16,000 items in one worker's hands."""
    worker, job = make_worker(conn), make_job(conn, 1_000)
    beat(conn, worker, [(job + 1, 3 * item * item) for item in range(16_000)])
    ranges = {"job": [job], "low": [0], "high": [1_000], "limit": 1_000}
    lost_messages = {
        "job": [job],
        "item": list(range(1_000)),
        "attempt": [1] * 1_000,
        "holder": LEADER,
        "given_back": None,
    }
    for name, parameters in (("unheld_items", ranges), ("republish", lost_messages)):
        explain = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement(name).encode()
        row = conn.execute(explain, with_timings(parameters)).fetchone()
        assert row is not None
        assert row[0][0]["Plan"]["Shared Hit Blocks"] < 20_000


def test_a_search_goes_on_where_the_last_ended(
    conn: Conn, search: LostMessageSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cost does not grow with the number of open jobs."""
    monkeypatch.setattr(lost_messages, "SEARCH_JOBS", 2)
    jobs = [make_job(conn, 1) for _ in range(5)]
    look(conn, search, times=3)
    assert [sent_again(conn, job) for job in jobs[2:]] == [[], [], []]
    look(conn, search, times=12)
    assert [sent_again(conn, job) for job in jobs] == [[0]] * 5
