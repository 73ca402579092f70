"""Which jobs and messages a publisher serves next: by statement, without a clock."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

import pytest

from callboard.middleware.publish.transport import Answer
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import NewItem, Outgoing
from callboard.sql.writes import actions, jobs, publishing, sends, sweep, workers
from callboard.sql.writes.requests import Requester
from tests.support.jobs import ARGS, claim_outbox, make_job, make_worker, record
from tests.support.transports import StubTransport, relay_to


def turn(conn: Conn, *, publish: int = 1) -> int | None:
    """The job that is served next, and gets so many items published; None: nobody is."""
    claim = publishing.claim_job(conn)
    if claim is None:
        return None
    reached = claim.watermark + publish
    publishing.advance_watermark(conn, claim, watermark=reached, published=publish, keep=False)
    return claim.job


# Whose turn it is ---------------------------------------------------------------------------------------------------


def test_tenants_take_turns_however_many_jobs_they_have(conn: Conn) -> None:
    many = [make_job(conn, 9, published=0, tenant="many") for _ in range(4)]
    one, two = (make_job(conn, 9, published=0, tenant=name) for name in ("one", "two"))
    served = [turn(conn) for _ in range(12)]
    assert served == [many[0], one, two, many[1], one, two, many[2], one, two, many[3], one, two]


def test_the_jobs_of_a_tenant_take_turns(conn: Conn) -> None:
    three = [make_job(conn, 9, published=0) for _ in range(3)]
    assert [turn(conn) for _ in range(6)] == three * 2


def test_a_tenant_that_comes_later_is_served_next(conn: Conn) -> None:
    first = make_job(conn, 9, published=0, tenant="first")
    assert [turn(conn), turn(conn)] == [first] * 2
    late = make_job(conn, 9, published=0, tenant="late")
    assert [turn(conn) for _ in range(4)] == [late, first, late, first]


def test_a_job_that_ended_leaves_its_tenant_no_debt(conn: Conn) -> None:
    done, other = make_job(conn, 1, published=0, tenant="a"), make_job(conn, 9, published=0, tenant="b")
    assert [turn(conn), turn(conn), turn(conn)] == [done, other, other]
    record(conn, done, {"succeeded": [0]})
    new = make_job(conn, 9, published=0, tenant="a")
    assert [turn(conn), turn(conn)] == [new, other]


def test_priority_goes_before_the_turn_of_tenants(conn: Conn) -> None:
    urgent = [make_job(conn, 9, published=0, tenant="a") for _ in range(2)]
    make_job(conn, 9, published=0, tenant="b")
    for job in urgent:
        actions.limit(conn, job, Requester("python"), {"priority": -1})
    assert [turn(conn) for _ in range(4)] == urgent * 2


def test_who_is_next_is_as_if_all_turns_were_sorted(conn: Conn) -> None:
    """By priority, then the tenant that was served longest ago, then its job that was; until each has had two turns."""
    happens = Random(7)  # noqa: S311
    found = {make_job(conn, 2, published=0, tenant=happens.choice("abcdef")): happens.randrange(3) for _ in range(30)}
    conn.execute("UPDATE callboard.jobs AS j SET priority = f.priority"
                 " FROM unnest(%s::bigint[], %s::int[]) AS f (id, priority) WHERE f.id = j.id",
                 (list(found), list(found.values())))  # fmt: skip
    served = {job: happens.random() for job in found if happens.random() < 0.6}
    for job, ago in served.items():
        conn.execute("UPDATE callboard.turns SET served_at = now() - %s * interval '1 h' WHERE job_id = %s", (ago, job))
    idle = [job for job in found if happens.random() < 0.3]
    conn.execute("UPDATE callboard.turns SET bulk_at = 'infinity' WHERE job_id = ANY (%s)", (idle,))
    tenants: dict[int, str] = dict(conn.execute("SELECT id, tenant FROM callboard.jobs").fetchall())
    last, due = {job: -ago for job, ago in served.items()}, [job for job in found if job not in idle] * 2
    for now in range(len(due)):
        of_tenant = {
            name: max(last.get(job, -9.0) for job in found if tenants[job] == name) for name in tenants.values()
        }
        expected = min(due, key=lambda job: (found[job], of_tenant[tenants[job]], last.get(job, -9.0), job))
        assert turn(conn) == expected
        last[expected] = float(now)
        due.remove(expected)
    assert turn(conn) is None


def test_a_job_that_got_nothing_published_keeps_its_turn(conn: Conn) -> None:
    first, second = (make_job(conn, 9, published=0, tenant=name) for name in "ab")
    assert [turn(conn), turn(conn)] == [first, second]
    claim = publishing.claim_job(conn)
    assert claim is not None
    assert claim.job == first
    publishing.advance_watermark(conn, claim, watermark=claim.watermark, published=0, keep=False, unserved=True)
    assert [turn(conn), turn(conn)] == [first, second]


# A gone actor -------------------------------------------------------------------------------------------------------


def test_a_job_whose_actor_no_living_worker_has_is_passed_over_until_one_comes(conn: Conn) -> None:
    gone, other = make_job(conn, 9, actor="gone", published=0), make_job(conn, 9, actor="work", published=0)
    had = make_worker(conn, "gone", "work")
    make_worker(conn, "work")
    assert {turn(conn), turn(conn)} == {gone, other}
    workers.stop_worker(conn, had)
    assert [turn(conn) for _ in range(3)] == [other] * 3
    assert publishing.claim_given_job(conn, gone) is None
    make_worker(conn, "gone")
    assert gone in {turn(conn), turn(conn)}


def test_what_no_worker_ever_had_is_not_published_to_others(conn: Conn) -> None:
    make_job(conn, 9, actor="misspelt", published=0)
    make_worker(conn, "work")
    assert turn(conn) is None


@pytest.mark.parametrize("end", ["died_at = now()", "stopped_at = now()", "beat_at = now() - interval '1 h'"])
def test_with_no_worker_alive_jobs_are_published_as_deep_as_a_queue_may_be(conn: Conn, end: str) -> None:
    job = make_job(conn, 9, actor="gone", published=0)
    workers.stop_worker(conn, make_worker(conn, "gone"))
    assert turn(conn) == job
    worker = make_worker(conn, "work")
    assert turn(conn) is None
    conn.execute(f"UPDATE callboard.workers SET {end} WHERE id = {worker}")
    assert turn(conn) is None  # it was looked at a moment ago
    conn.execute("UPDATE callboard.turns SET bulk_at = bulk_at - interval '5 s'")
    assert turn(conn) == job


# The outbox ---------------------------------------------------------------------------------------------------------


def claimed(conn: Conn, limit: int, rooms: Mapping[str, int] | None = None) -> Counter[int]:
    """How many messages of each job are claimed; None: there is room for all."""
    outs = claim_outbox(conn, limit) if rooms is None else publishing.claim_outbox(conn, limit, rooms)
    return Counter(out.job for out in outs)


def make_sends(conn: Conn, count: int, *, tenant: str = "", queue: str = "default") -> int:
    """A job of plain sends that are due."""
    job = make_job(conn, 0, sealed=False, tenant=tenant)
    add_sends(conn, job, range(count), queue)
    return job


def add_sends(conn: Conn, job: int, items: Iterable[int], queue: str = "default") -> None:
    new = [NewItem(job, "work", queue, f"m-{job}-{n}", ARGS, None, 5) for n in items]
    sends.add_items(conn, new, publishing=False)


def test_a_fan_out_leaves_room_for_the_messages_of_others(conn: Conn) -> None:
    many, few = make_sends(conn, 1_000, tenant="many"), make_sends(conn, 20, tenant="few")
    assert claimed(conn, 500, {"default": 50}) == {many: 25, few: 20}
    assert claimed(conn, 500, {"default": 50}) == {many: 50}


def test_of_each_queue_as_many_messages_are_claimed_as_it_has_room_for(conn: Conn) -> None:
    job, other = make_sends(conn, 30, queue="default"), make_sends(conn, 30, queue="other")
    add_sends(conn, job, range(30, 60), "other")
    outs = publishing.claim_outbox(conn, 500, {"default": 4, "other": 10})
    assert Counter((out.job, out.queue) for out in outs) == {
        (job, "default"): 4, (job, "other"): 5, (other, "other"): 5,
    }  # fmt: skip
    assert claimed(conn, 500, {}) == {}


def test_a_message_that_is_stored_while_a_publisher_looks_is_found_by_the_next(conn: Conn, database_url: str) -> None:
    """The publisher's snapshot lacks it, and must not put its turn off."""
    job = make_sends(conn, 1)
    with connect(database_url) as other:
        with other.transaction():
            add_sends(other, job, [1])
            assert claimed(conn, 10) == {job: 1}
        assert claimed(conn, 10) == {job: 1}
        assert publishing.due_queues(conn) == []


def test_a_message_of_a_vanished_publisher_is_due_when_its_claim_ends(conn: Conn) -> None:
    job = make_sends(conn, 1)
    assert claimed(conn, 10) == {job: 1}
    assert claimed(conn, 10) == {}
    conn.execute("UPDATE callboard.outbox SET claimed_until = now()")
    assert claimed(conn, 10) == {job: 1}


def test_messages_that_somebody_else_holds_for_a_moment_are_looked_at_again(conn: Conn, database_url: str) -> None:
    """A transaction that is rolled back, or a publisher that claims them and vanishes, tells nobody of them."""
    job = make_sends(conn, 3)
    with connect(database_url) as other:
        with other.transaction():
            other.execute("SELECT FROM callboard.outbox FOR UPDATE")
            assert claimed(conn, 10) == {}
        assert [due.queue for due in publishing.due_queues(conn)] == ["default"]
        with other.transaction():
            other.execute("UPDATE callboard.outbox SET claimed_until = now()")
            assert claimed(conn, 10) == {}
    assert claimed(conn, 10) == {job: 3}


def test_a_retry_is_due_at_its_time_however_many_wait_longer(conn: Conn) -> None:
    job = make_job(conn, 20)
    record(conn, job, {"retrying": range(1, 20)}, delay=3_600.0)
    assert publishing.due_queues(conn) == []
    record(conn, job, {"retrying": [0]}, delay=0.0)
    assert [out.item for out in claim_outbox(conn, 10)] == [0]
    assert publishing.due_queues(conn) == []


# The order of the tenants -------------------------------------------------------------------------------------------


class Served(StubTransport):
    """Takes one message of a job in turn at a time; `jobs` has the job of each."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[int] = []

    def publish(self, batch: Sequence[Outgoing]) -> list[Answer]:
        self.jobs += [out.job for out in batch]
        return super().publish(batch)


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int]]]:
    """The orders of tenants that are read; each is kept for long."""
    read, found = publishing.due_tenants, []

    def due_tenants(*args: Any) -> list[tuple[str, int]]:
        found.append(read(*args))
        return list(found[-1])

    monkeypatch.setattr(publishing, "due_tenants", due_tenants)
    monkeypatch.setattr("callboard.middleware.publish.relay.TENANTS_SECONDS", 300.0)
    return found


def test_tenants_take_turns_though_their_order_is_read_once(conn: Conn, orders: list[list[tuple[str, int]]]) -> None:
    many, one = [make_job(conn, 1, published=0, tenant="many") for _ in range(3)], make_job(conn, 1, published=0)
    urgent = [make_job(conn, 1, published=0, tenant="many") for _ in range(2)]
    for job in urgent:
        actions.limit(conn, job, Requester("python"), {"priority": -1})
    transport = Served()
    relay = relay_to(transport)
    while relay.publish_due(conn):
        pass
    assert transport.jobs == [*urgent, many[0], one, *many[1:]]
    assert orders == [[("many", -1), ("many", 0), ("", 0)]]


def test_a_tenant_that_comes_later_is_served_when_the_known_ones_have_nothing_left(
    conn: Conn, orders: list[list[tuple[str, int]]]
) -> None:
    first = make_job(conn, 1, published=0, tenant="first")
    transport = Served()
    relay = relay_to(transport)
    assert relay.publish_due(conn)
    late = make_job(conn, 1, published=0, tenant="late")
    assert relay.publish_due(conn)
    assert transport.jobs == [first, late]
    assert orders == [[("first", 0)], [("late", 0)]]


def test_a_tenant_that_comes_later_is_served_when_the_order_is_old(
    conn: Conn, orders: list[list[tuple[str, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [make_job(conn, 1, published=0, tenant="first") for _ in range(3)]
    transport = Served()
    relay = relay_to(transport)
    monkeypatch.setattr("callboard.middleware.publish.relay.TENANTS_SECONDS", 0.0)
    assert relay.publish_due(conn)
    late = make_job(conn, 1, published=0, tenant="late")
    while relay.publish_due(conn):
        pass
    assert transport.jobs == [first[0], late, *first[1:]]
    assert len(orders) == 4


# Jobs that can't be served ------------------------------------------------------------------------------------------


def test_a_job_at_its_limit_is_looked_at_again_once_an_item_ends(conn: Conn) -> None:
    job = make_job(conn, 9, published=0)
    actions.limit(conn, job, Requester("python"), {"concurrency": 1})
    assert turn(conn) == job
    assert [due.queue for due in publishing.due_queues(conn)] == ["default"]
    assert turn(conn) is None
    assert publishing.due_queues(conn) == []
    record(conn, job, {"succeeded": [0]})
    assert [due.queue for due in publishing.due_queues(conn)] == ["default"]
    assert turn(conn) == job


def test_a_job_whose_row_somebody_holds_for_a_moment_is_looked_at_again(conn: Conn, database_url: str) -> None:
    """The record of outcomes does, many times a second; nothing tells when it is done."""
    job = make_job(conn, 9, published=0)
    with connect(database_url) as other:
        with other.transaction():
            jobs.lock_jobs(other, [job])
            assert turn(conn) is None
        assert turn(conn) == job


def test_an_item_that_ended_before_its_job_was_put_off_lets_it_go_on(conn: Conn, database_url: str) -> None:
    """The transaction of its outcome began earlier, so the time that the turn was put off to is further for it."""
    job = make_job(conn, 9, published=0)
    actions.limit(conn, job, Requester("python"), {"concurrency": 1})
    assert turn(conn) == job
    with connect(database_url) as other, other.transaction():
        other.execute("SELECT now()")
        assert turn(conn) is None
        record(other, job, {"succeeded": [0]})
    assert turn(conn) == job


def test_a_paused_job_has_no_turn_until_it_is_resumed(conn: Conn) -> None:
    job = make_job(conn, 20)
    record(conn, job, {"retrying": range(20)}, delay=0.0)
    actions.pause(conn, job, Requester("python"))
    assert publishing.due_queues(conn) == []
    assert claimed(conn, 100) == {}
    actions.resume(conn, job, Requester("python"))
    assert claimed(conn, 100) == {job: 20}


def test_ten_thousand_tenants_are_compared_once(conn: Conn) -> None:
    """Each with each, it took 24 s."""
    conn.execute(
        "INSERT INTO callboard.jobs (name, actor, queue, sealed, total, consumed, bulk_end, tenant)"
        " SELECT 'a', 'work', 'default', true, 10, 10, 10, 't' || n FROM generate_series(1, 10000) AS n"
    )
    conn.execute("SET statement_timeout = '2s'")
    assert len({turn(conn) for _ in range(5)} - {None}) == 5
    read = "SELECT sum(pg_stat_get_xact_blocks_fetched(oid))::int FROM pg_class WHERE relname LIKE 'turns%'"
    with conn.transaction():  # in which nothing is reset
        before, found, after = conn.execute(read).fetchone(), publishing.due_queues(conn), conn.execute(read).fetchone()
    assert [due.queue for due in found] == ["default"]
    assert before is not None
    assert after is not None
    assert after[0] - before[0] < 30, "one that is due is enough"
    conn.execute("DELETE FROM callboard.jobs")


def test_the_turns_of_a_job_end_with_it(conn: Conn) -> None:
    job = make_sends(conn, 3)
    conn.execute("UPDATE callboard.outbox SET due_at = now() + interval '1 h'")
    actions.cancel(conn, job, Requester("python"))
    conn.execute("UPDATE callboard.jobs SET control_at = now() - interval '1 h'")
    jobs.close_stopped(conn)
    assert publishing.due_queues(conn) == []
    for left in (1, 0):
        sweep.drop_messages_of_ended_jobs(conn)
        assert conn.execute("SELECT count(*) FROM callboard.turns").fetchone() == (left,)
    assert conn.execute("SELECT count(*) FROM callboard.outbox").fetchone() == (0,)
