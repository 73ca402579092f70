"""Items with the same value of an argument are a lane, and only so many of a lane are in flight: by statement."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from callboard.middleware.journal.rescue import rescue
from callboard.middleware.publish import lanes
from callboard.sql import timings
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import Event, Outgoing
from callboard.sql.writes import actions, claims, jobs, outcomes, publishing, retry_action, submission, sweep, workers
from callboard.sql.writes import lanes as lanes_of
from callboard.sql.writes.lanes import ClaimTakenOver, move_to_outbox
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support.jobs import claim_outbox, make_job, make_worker, record, run, send, status

ANNA = Requester("python", "anna")


def job_of(conn: Conn, customers: Sequence[Any], *, sealed: bool = True, **limits: Any) -> int:
    """A job with an item for each of these customers, of which nothing is published."""
    job = make_job(conn, 0, sealed=False)
    chunk = [
        (json.dumps({"args": [n % 2], "kwargs": {"customer": customer}}).encode(), None)
        for n, customer in enumerate(customers)
    ]
    for start in range(0, len(chunk), 10_000):
        submission.store_chunk(conn, job, start, chunk[start : start + 10_000], keyed=False)
    if sealed:
        submission.seal_job(conn, job)
    actions.limit(conn, job, ANNA, limits or {"concurrency_by": "customer=1"})
    return job


def claimed(conn: Conn, job: int, room: int = 1_000) -> list[Outgoing]:
    """What a publisher claims in a job's turn, and has in hand."""
    claim = publishing.claim_given_job(conn, job)
    if claim is None:
        return []
    room = room if claim.allowed is None else min(room, claim.allowed)
    found = [out for batch in lanes.batches(conn, claim, room) for out in batch]
    publishing.advance_watermark(conn, claim, watermark=claim.watermark, published=0, keep=False)
    return found


def published(conn: Conn, job: int, room: int = 1_000) -> list[int]:
    """The items that a publisher publishes in a job's turn."""
    batch = claimed(conn, job, room)
    publishing.confirm_outbox(conn, batch)
    return [out.item for out in batch]


def items_by_lane(conn: Conn, job: int) -> dict[int, str]:
    return dict(conn.execute("SELECT item, lane FROM callboard.lanes WHERE job_id = %s ORDER BY 1", (job,)))


def lapse(conn: Conn) -> None:
    """Every publisher's claims have lapsed."""
    conn.execute("UPDATE callboard.jobs SET publish_until = now() - interval '1 s' WHERE publish_until IS NOT NULL")
    conn.execute("UPDATE callboard.outbox SET claimed_until = now() WHERE claimed_until IS NOT NULL")


# Words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["customer=5", " customer = 5", {"customer": 5}, {"customer": "5"}])
def test_a_limit_by_an_argument_is_said_as_a_text_or_an_object(given: Any) -> None:
    limits = Limits(concurrency_by=given)
    assert limits.as_json() == {"concurrency_by": "customer=5"}
    assert (limits.columns()["lane_by"], limits.columns()["lane_width"]) == ("customer", 5)
    assert Limits.from_json(limits.as_json()) == limits
    assert Limits(concurrency_by={0: 5}) == Limits(concurrency_by="0=5")


@pytest.mark.parametrize(
    "given",
    [
        "", "customer", "customer=", "=5", "customer=0", "customer=-1", "customer=many", "customer=1.5", "-1=5",
        "customer=99999999999", "a\x00b=5", "x" * 101 + "=5", 5, True, {}, {"a": 1, "b": 2}, {"a": True},
        {"a": None}, {"a": 1.5}, {None: 1}, [("a", 1)],
    ],
)  # fmt: skip
def test_a_limit_by_an_argument_that_makes_no_sense_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="concurrency_by must be the name or the position of one argument"):
        Limits(concurrency_by=given)


def test_so_many_lanes_is_a_whole_number_and_needs_lanes() -> None:
    limits = Limits(concurrency_by="customer=2", lanes=5)
    assert limits.as_json() == {"concurrency_by": "customer=2", "lanes": 5}
    assert limits.columns()["lanes"] == 5
    for wrong in (0, -1, True, "5", 1.5):
        with pytest.raises(ValueError, match="lanes must be a whole number from 1"):
            Limits(concurrency_by="customer=2", lanes=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lanes limits the values of the argument that concurrency_by names"):
        Limits(lanes=5).columns()


# Turns --------------------------------------------------------------------------------------------------------------


def test_lanes_are_served_by_item_and_full_ones_are_passed_over(conn: Conn) -> None:
    job = job_of(conn, "aaabbc", concurrency_by="customer=2")
    assert published(conn, job) == [0, 1, 3, 4, 5]
    assert published(conn, job) == []
    assert (status(conn, job)["queued"], status(conn, job)["pending"]) == (5, 1)
    record(conn, job, {"succeeded": [3]})
    assert published(conn, job) == []
    record(conn, job, {"succeeded": [1]})
    assert published(conn, job) == [2]
    record(conn, job, {"succeeded": [0, 2, 4, 5]})
    assert status(conn, job)["state"] == "completed"


def test_so_many_lanes_are_in_flight_at_once(conn: Conn) -> None:
    """Another takes the place of one that has nothing in flight: that of the first item that waits."""
    job = job_of(conn, "aabbccddaa", concurrency_by="customer=2", lanes=2)
    assert published(conn, job) == [0, 1, 2, 3]
    record(conn, job, {"succeeded": [2]})
    assert published(conn, job) == []
    record(conn, job, {"succeeded": [0]})
    assert published(conn, job) == [8]
    record(conn, job, {"succeeded": [3]})
    assert published(conn, job) == [4, 5]
    assert set(items_by_lane(conn, job).values()) == {'"a"', '"c"'}
    record(conn, job, {"succeeded": [1, 8]})
    assert published(conn, job) == [6, 7]


def test_a_limit_of_lanes_is_changed_on_a_run(conn: Conn) -> None:
    job = job_of(conn, "abcdef", concurrency_by="customer=1", lanes=1)
    assert published(conn, job) == [0]
    actions.limit(conn, job, ANNA, {"lanes": 3})
    assert published(conn, job) == [1, 2]
    with pytest.raises(ValueError, match="lanes limits the values"):
        actions.limit(conn, job, ANNA, {"concurrency_by": None})
    actions.limit(conn, job, ANNA, {"lanes": None})
    assert published(conn, job) == [3, 4, 5]


def test_a_retry_in_its_lane_waits_for_a_place_too(conn: Conn) -> None:
    job = job_of(conn, "abb", concurrency_by="customer=1", lanes=1)
    assert published(conn, job) == [0]
    record(conn, job, {"retrying": [0]}, delay=0.0)
    assert published(conn, job) == [0]  # the first that waits
    record(conn, job, {"retrying": [0]}, attempt=2, delay=60.0)
    assert published(conn, job) == [1]
    conn.execute("UPDATE callboard.outbox SET due_at = now() WHERE item = 0")
    assert published(conn, job) == []
    record(conn, job, {"succeeded": [1]})
    assert published(conn, job) == [0]


def test_a_lane_that_an_item_holds_back_waits_and_others_do_not(conn: Conn) -> None:
    """Nor does it keep the place of another; the job says why it waits."""
    job = job_of(conn, "aabbc", concurrency_by="customer=1", lanes=2)
    assert published(conn, job) == [0, 2]
    lanes_of.hold(conn, job, 0, {}, 3600, "the API said so")
    lanes_of.hold(conn, job, 0, {}, 60, "and again")  # the longest counts
    record(conn, job, {"succeeded": [0]})
    assert published(conn, job) == [4]
    record(conn, job, {"succeeded": [4]})
    assert published(conn, job) == []
    record(conn, job, {"succeeded": [2]})
    assert published(conn, job) == [3]
    record(conn, job, {"succeeded": [3]})
    make_worker(conn)
    conn.execute("UPDATE callboard.jobs SET updated_at = now() - interval '1 min'")
    assert '"a" is held back until ' in status(conn, job)["stalled"]
    assert status(conn, job)["stalled"].endswith(": and again")
    conn.execute("""UPDATE callboard.jobs SET holds = '{"\\"a\\"": {"until": "2020-01-01T00:00:00Z", "reason": ""}}'""")
    assert published(conn, job) == [1]


def test_an_item_that_has_left_its_lane_holds_that_back(conn: Conn) -> None:
    """The thread that writes it may come after the end of the item."""
    job = job_of(conn, "aab", concurrency_by="customer=1")
    assert published(conn, job) == [0, 2]
    record(conn, job, {"succeeded": [0]})
    assert published(conn, job) == [1]
    lanes_of.hold(conn, job, 0, lanes.lanes_of_call([7], {"customer": "a", "\0": 1}), 3600, "")
    assert conn.execute("SELECT jsonb_object_keys(holds), not_before FROM callboard.jobs").fetchall() == [('"a"', None)]


def test_an_item_without_a_lane_holds_back_its_job(conn: Conn) -> None:
    job = make_job(conn, 3, published=0)
    make_worker(conn)
    lanes_of.hold(conn, job, 0, {}, 3600, "")
    assert publishing.claim_job(conn) is None
    conn.execute("UPDATE callboard.jobs SET updated_at = now() - interval '1 min'")
    assert status(conn, job)["stalled"].startswith("held back until 20")
    conn.execute("UPDATE callboard.jobs SET not_before = now()")
    assert publishing.claim_job(conn) is not None


def test_the_publisher_looks_again_when_a_hold_ends(conn: Conn) -> None:
    """Not seconds later, as at lanes that are full."""
    job = job_of(conn, "aa", concurrency_by="customer=1")
    assert published(conn, job) == [0]
    lanes_of.hold(conn, job, 0, {}, 50.0, "")
    record(conn, job, {"succeeded": [0]})
    claim = publishing.claim_job(conn)
    assert claim is not None
    assert [*lanes.batches(conn, claim, 10)] == []
    publishing.advance_watermark(
        conn, claim, watermark=claim.watermark, published=0, keep=False, unserved=True, pause=60.0
    )
    at_its_end = """
        SELECT t.bulk_at = (h.value ->> 'until')::timestamptz
        FROM callboard.turns AS t JOIN callboard.jobs AS j ON j.id = t.job_id, jsonb_each(j.holds) AS h
    """
    assert conn.execute(at_its_end).fetchall() == [(True,)]


def test_a_changed_limit_drops_no_hold_of_the_whole_job(conn: Conn) -> None:
    job = make_job(conn, 3, published=0)
    lanes_of.hold(conn, job, 0, {}, 3600, "")
    actions.limit(conn, job, ANNA, {"concurrency": 2})
    assert publishing.claim_job(conn) is None


def test_a_hold_of_a_lane_ends_when_lanes_go_by_another_argument(conn: Conn) -> None:
    """Its name may be that of another lane then."""
    job = job_of(conn, "aab", concurrency_by="customer=1")
    assert published(conn, job) == [0, 2]
    (control,) = lanes_of.hold(conn, job, 0, {}, 3600, "")
    assert (control.lane_by, control.holds and [*control.holds]) == ("customer", ['"a"'])
    actions.limit(conn, job, ANNA, {"concurrency_by": "0=2"})
    assert published(conn, job) == [1]
    (control,) = workers.job_controls(conn)
    assert (control.lane_by, control.holds) == ("0", {})


def test_lanes_that_are_all_full_have_no_more_items_set_aside(conn: Conn) -> None:
    job = job_of(conn, [n % 50 for n in range(3_000)], concurrency_by="customer=1", lanes=3)
    assert published(conn, job) == [0, 1, 2]
    before = conn.execute("SELECT watermark FROM callboard.jobs WHERE id = %s", (job,)).fetchone()
    assert published(conn, job) == []
    assert conn.execute("SELECT watermark FROM callboard.jobs WHERE id = %s", (job,)).fetchone() == before


def test_lanes_may_go_by_a_positional_argument(conn: Conn) -> None:
    job = job_of(conn, "xxxx", concurrency_by="0=1")  # every second has the same
    assert published(conn, job) == [0, 1]


def test_items_without_the_argument_are_one_lane(conn: Conn) -> None:
    job = job_of(conn, "abc", concurrency_by="region=2")
    assert published(conn, job) == [0, 1]


def test_the_room_and_the_jobs_own_concurrency_hold_too(conn: Conn) -> None:
    job = job_of(conn, "aabbccdd", concurrency_by="customer=1", concurrency=3)
    assert published(conn, job, room=2) == [0, 2]
    assert published(conn, job) == [4]
    record(conn, job, {"succeeded": [0]})
    assert published(conn, job) == [1]


def test_what_is_sent_into_the_job_is_in_lanes_too(conn: Conn) -> None:
    job = job_of(conn, "aa", sealed=False)
    for item in (2, 3):
        send(conn, job, item)  # without a customer
    assert claim_outbox(conn, 10) == []
    assert sorted(published(conn, job)) == [0, 2]
    record(conn, job, {"succeeded": [2]})
    assert published(conn, job) == [3]


def test_workers_hear_that_what_ends_leaves_room(conn: Conn) -> None:
    """So that the publisher looks at once."""
    job = job_of(conn, "aa")
    assert published(conn, job) == [0]
    (told,) = outcomes.record(conn, [Event(job, 0, 1, "succeeded", 0.01, 0.0, 1)], 0.0)
    assert told.limited


# Ends ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["succeeded", "failed", "skipped"])
def test_whatever_ends_an_item_frees_its_place(conn: Conn, end: Any) -> None:
    job = job_of(conn, "aa")
    assert published(conn, job) == [0]
    record(conn, job, {end: [0]})
    assert published(conn, job) == [1]


def test_what_waits_for_a_retry_frees_its_place_and_takes_one_when_it_is_due(conn: Conn) -> None:
    job = job_of(conn, "aaa")
    assert published(conn, job) == [0]
    record(conn, job, {"retrying": [0]}, delay=60)
    assert published(conn, job) == [1]
    conn.execute("UPDATE callboard.outbox SET due_at = now() WHERE due_at > now()")
    assert published(conn, job) == []  # it is due, and its lane is full
    record(conn, job, {"succeeded": [1]})
    assert published(conn, job) == [0]  # before 2, that comes later in the job
    assert status(conn, job)["retrying"] == 0
    assert published(conn, job) == []
    record(conn, job, {"succeeded": [0]}, attempt=2)
    assert published(conn, job) == [2]


def test_what_is_parked_lost_or_held_by_a_dead_worker_frees_its_place(conn: Conn) -> None:
    job = job_of(conn, "aaa")
    assert published(conn, job) == [0]
    actions.pause(conn, job, ANNA)
    claims.park(conn, [(job, 0, 1)])
    actions.resume(conn, job, ANNA)
    assert published(conn, job) == [0]
    assert sweep.republish(conn, job, [(0, 1)]) == 1
    assert published(conn, job) == [0]
    worker = make_worker(conn)
    run(conn, job, [0], worker=worker)
    assert published(conn, job) == []
    conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s", (worker,))
    assert rescue(conn, worker) == 1
    make_worker(conn)
    assert published(conn, job) == [0]
    assert items_by_lane(conn, job) == {0: '"a"'}


# Publishers that vanish ---------------------------------------------------------------------------------------------


def test_what_a_publisher_claimed_and_left_goes_again_as_suspect_in_the_place_it_has(conn: Conn) -> None:
    """Nobody knows whether it was sent: so it keeps its place, and nothing else gets one."""
    job = job_of(conn, "aabb")
    left = claimed(conn, job)
    assert [(out.item, out.suspect) for out in left] == [(0, False), (2, False)]
    assert claimed(conn, job) == []
    lapse(conn)
    again = claimed(conn, job)
    assert [(out.item, out.suspect) for out in again] == [(0, True), (2, True)]
    publishing.confirm_outbox(conn, again)
    publishing.confirm_outbox(conn, left)  # the first one comes to
    record(conn, job, {"succeeded": [0]})
    assert published(conn, job) == [1]


def test_what_a_publisher_left_takes_no_second_place(conn: Conn) -> None:
    job = job_of(conn, "aaa")
    assert [out.item for out in claimed(conn, job)] == [0]
    actions.limit(conn, job, ANNA, {"concurrency_by": "customer=2"})
    lapse(conn)
    assert published(conn, job) == [0, 1]


def test_what_a_publisher_could_not_send_keeps_its_place_and_goes_next(conn: Conn) -> None:
    job = job_of(conn, "aab")
    batch = claimed(conn, job)
    publishing.release_outbox(conn, batch)
    assert published(conn, job) == [0, 2]


def test_what_failed_before_its_publisher_gave_up_leaves_its_lane(conn: Conn) -> None:
    """Its row in the outbox is that of the retry, which waits for its own time."""
    job = job_of(conn, "aa")
    batch = claimed(conn, job)
    record(conn, job, {"retrying": [0]}, delay=3600)
    publishing.release_outbox(conn, batch)
    assert published(conn, job) == [1]


def test_a_publisher_whose_claim_was_taken_over_changes_nothing(conn: Conn) -> None:
    job = job_of(conn, "aabb")
    frozen = publishing.claim_given_job(conn, job)
    assert frozen is not None
    lapse(conn)
    assert published(conn, job) == [0, 2]
    before = conn.execute("SELECT id, item, lane, claimed_until FROM callboard.outbox ORDER BY id").fetchall()
    with pytest.raises(ClaimTakenOver):
        list(lanes.batches(conn, frozen, 10))
    with pytest.raises(ClaimTakenOver):
        move_to_outbox(conn, frozen, 0, 4, [(0, "x")])
    assert conn.execute("SELECT id, item, lane, claimed_until FROM callboard.outbox ORDER BY id").fetchall() == before
    assert items_by_lane(conn, job) == {0: '"a"', 2: '"b"'}


def test_two_publishers_never_overfill_a_lane(conn: Conn, database_url: str) -> None:
    """The second is let in only when the first is done or gone; then it counts what the first gave out."""
    job = job_of(conn, "aaaa", concurrency_by="customer=2")
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    batches = lanes.batches(conn, claim, 1)
    assert [out.item for out in next(batches)] == [0]
    with connect(database_url) as other:
        assert publishing.claim_given_job(other, job) is None
        lapse(other)
        assert published(other, job) == [0, 1]
    with pytest.raises(ClaimTakenOver):
        list(lanes.batches(conn, claim, 1))


# Looking ahead ------------------------------------------------------------------------------------------------------


def test_a_lane_at_the_front_does_not_block_those_behind_it(conn: Conn) -> None:
    front = 3 * timings.PUBLISH_WINDOW_ITEMS
    job = job_of(conn, ["a"] * front + ["b"] * 5)
    assert published(conn, job) == [0, front]
    found = status(conn, job)
    assert (found["queued"], found["pending"]) == (2, front + 3)


def test_no_more_is_set_aside_than_the_look_ahead(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_ASIDE_ITEMS", 2 * timings.PUBLISH_WINDOW_ITEMS)
    job = job_of(conn, ["a"] * 5 * timings.PUBLISH_WINDOW_ITEMS + ["b"])
    assert published(conn, job) == [0]
    assert published(conn, job) == []
    waiting = conn.execute("SELECT count(*) FROM callboard.outbox").fetchone()
    assert waiting == (3 * timings.PUBLISH_WINDOW_ITEMS - 1,)  # the last stretch is as long as all before it
    assert published(conn, job) == []


def test_one_turn_looks_only_so_far_and_the_next_goes_on(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other jobs are waiting."""
    monkeypatch.setattr(lanes, "TURN_ITEMS", timings.PUBLISH_WINDOW_ITEMS)
    job = job_of(conn, ["a"] * 3 * timings.PUBLISH_WINDOW_ITEMS + ["b"])
    assert [published(conn, job) for _ in range(5)] == [[0], [], [], [3 * timings.PUBLISH_WINDOW_ITEMS], []]


# Said to a running job ----------------------------------------------------------------------------------------------


def test_the_limit_is_widened_narrowed_and_taken_away_on_the_run(conn: Conn) -> None:
    job = job_of(conn, "aaaaaab")
    assert published(conn, job) == [0, 6]
    actions.limit(conn, job, ANNA, {"concurrency_by": {"customer": 3}})
    assert status(conn, job)["limits"] == {"concurrency_by": "customer=3"}
    assert published(conn, job) == [1, 2]
    actions.limit(conn, job, ANNA, {"concurrency_by": "customer=1"})
    record(conn, job, {"succeeded": [0, 1]})
    assert published(conn, job) == []
    actions.limit(conn, job, ANNA, {"concurrency_by": None})
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    assert (claim.lane_by, claim.limited, claim.in_turn) == (None, False, 3)
    rest = publishing.claim_in_turn(conn, claim, 10)
    assert [(out.item, out.suspect) for out in rest] == [(3, False), (4, False), (5, False)]
    publishing.confirm_outbox(conn, rest)
    record(conn, job, {"succeeded": [2, 3, 4, 5, 6]})
    assert status(conn, job)["state"] == "completed"


def test_lanes_that_go_by_another_argument_are_told_anew(conn: Conn) -> None:
    """What waits, and what is in flight."""
    job = job_of(conn, "aaab")
    assert published(conn, job) == [0, 3]
    actions.limit(conn, job, ANNA, {"concurrency_by": "0=1"})
    assert published(conn, job) == []
    assert items_by_lane(conn, job) == {0: "0", 3: "1"}
    record(conn, job, {"succeeded": [3]})
    assert published(conn, job) == [1]
    record(conn, job, {"succeeded": [0]})
    assert published(conn, job) == [2]


def test_a_limit_set_on_the_run_holds_for_what_is_not_published_yet(conn: Conn) -> None:
    job = make_job(conn, 6, published=2)
    actions.limit(conn, job, ANNA, {"concurrency_by": "customer=1"})
    assert published(conn, job) == [2]


def test_lanes_of_many_messages_are_told_some_at_a_time(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million that are retried by hand must not keep others waiting."""
    monkeypatch.setattr(lanes, "TURN_ITEMS", 2)
    job = make_job(conn, 5)
    record(conn, job, {"failed": range(5)})
    assert retry_action.retry(conn, job, ANNA, RetrySelection()) == 5
    actions.limit(conn, job, ANNA, {"concurrency_by": "0=1"})
    assert sorted(published(conn, job)) == [0, 1, 2, 3, 4]


def test_a_job_that_is_paused_in_the_middle_of_a_turn_publishes_nothing_more(conn: Conn) -> None:
    job = job_of(conn, "aabb")
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    batches = lanes.batches(conn, claim, 10)
    publishing.confirm_outbox(conn, next(batches))
    actions.pause(conn, job, ANNA)
    with pytest.raises(ClaimTakenOver):
        next(batches)
    assert status(conn, job)["pending"] == 2
    publishing.advance_watermark(conn, claim, watermark=claim.watermark, published=0, keep=False)
    actions.resume(conn, job, ANNA)
    record(conn, job, {"succeeded": [0, 2]})
    assert published(conn, job) == [1, 3]


@pytest.mark.parametrize("states", [["cancelled"], ["failed"]])
def test_a_cancelled_job_that_is_opened_again_has_its_lanes(conn: Conn, states: list[str]) -> None:
    job = job_of(conn, "aaabb", concurrency_by="customer=1")
    assert published(conn, job) == [0, 3]
    record(conn, job, {"failed": [0]})
    assert published(conn, job) == [1]
    actions.cancel(conn, job, ANNA)
    conn.execute("UPDATE callboard.jobs SET control_at = now() - interval '1 h'")
    jobs.close_stopped(conn)
    assert status(conn, job)["state"] == "cancelled"
    for _ in range(2):  # first its messages
        sweep.drop_messages_of_ended_jobs(conn)
    assert items_by_lane(conn, job) == {}
    retry_action.retry(conn, job, ANNA, RetrySelection(states))
    first, second = ([1, 3], [2, 4]) if states == ["cancelled"] else ([0], [])
    assert published(conn, job) == first
    record(conn, job, {"succeeded": first}, attempt=1 if second else 2)
    assert published(conn, job) == second


def test_lanes_of_jobs_that_go_on_are_left_alone(conn: Conn) -> None:
    job = job_of(conn, "ab")
    assert published(conn, job) == [0, 1]
    assert items_by_lane(conn, job) == {0: '"a"', 1: '"b"'}
