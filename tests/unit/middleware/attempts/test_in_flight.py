"""Of the messages that come for one item, the one that carries its attempt runs, and none is acknowledged before."""

import threading

import pytest

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.stamp import Stamp
from callboard.sql.rows import Claim, JobControl
from tests.support.deliveries import Delivered, RecordedAcks
from tests.support.process_parts import PlayedInFlight
from tests.support.workers import wait_until

TIMEOUT = 300.0


def test_the_next_attempt_runs_while_a_copy_of_the_last_is_being_claimed() -> None:
    """A worker that was killed between a commit and its acknowledgement leaves both."""
    asked, proceed = threading.Event(), threading.Event()

    def claim(attempt: Attempt) -> Claim | None:
        if attempt.number == 1:
            asked.set()
            assert proceed.wait(TIMEOUT)
            return None
        return Claim("waiting", 2, 0, 1, taken=True, holder_alive=True)

    in_flight = PlayedInFlight(claim)
    last: list[Attempt | None] = []

    def take(attempt: int) -> Attempt | None:
        return in_flight.admit(Delivered(Stamp(1, 0, attempt, suspect=attempt > 1), redelivered=True))

    asking = threading.Thread(target=lambda: last.append(take(1)))
    asking.start()
    assert asked.wait(TIMEOUT)
    assert take(1) is None
    found = take(2)
    proceed.set()
    asking.join(TIMEOUT)
    assert last == [None]
    assert found is not None
    assert found.number == 2


class Waiting:
    """A message whose item waits for its turn, while another item runs alone."""

    def __init__(self, *, redelivered: bool = True, state: str = "waiting") -> None:
        self.taken: list[Attempt | None] = []
        self.acks = RecordedAcks()
        found = Claim(state, 1, 0, 1, taken=True, holder_alive=True) if state == "waiting" else None
        self.in_flight = PlayedInFlight(lambda _: found)
        self.alone = Attempt(1, 9, 3, [], {})
        self.in_flight._isolation.enter(self.alone, alone=True)
        self.first = self.message(1, redelivered=redelivered)
        self.thread = threading.Thread(target=lambda: self.taken.append(self.in_flight.admit(self.first)), daemon=True)
        self.thread.start()
        assert wait_until(lambda: not redelivered or len(self.in_flight._claiming) == 1, TIMEOUT)

    def message(self, tag: int, *, redelivered: bool = True) -> Delivered:
        return Delivered(Stamp(1, 0, 1), redelivered=redelivered, acks=self.acks, tag=tag)

    def proceed(self) -> Attempt | None:
        self.in_flight._isolation.leave(self.alone)
        self.thread.join(TIMEOUT)
        (taken,) = self.taken
        return taken


def test_all_attempts_of_a_batch_keep_one_thread_busy() -> None:
    in_flight, acks = PlayedInFlight(), RecordedAcks()
    in_flight.process.threads = 2
    for item in range(3):
        assert in_flight.admit(Delivered(Stamp(1, item, 1), acks=acks, tag=item)) is not None
    assert [in_flight.busy_threads(those) for those in (None, acks, RecordedAcks())] == [1, 1, 0]
    assert in_flight.has_free_thread()


def test_a_thread_is_busy_while_its_message_waits_for_its_turn() -> None:
    waiting = Waiting()
    assert waiting.in_flight.busy_threads(waiting.acks) == 1
    assert waiting.proceed() is not None
    assert waiting.in_flight.busy_threads(waiting.acks) == 1


def test_a_copy_of_a_waiting_message_is_acknowledged_with_it() -> None:
    """The first one's connection is lost meanwhile, so only the copy is left of the message."""
    waiting = Waiting()
    waiting.first.delivery.stale = True
    copy = waiting.message(2)
    assert waiting.in_flight.admit(copy) is None
    assert copy.delivery.deferred
    taken = waiting.proceed()
    assert taken is not None
    assert taken.deliveries == [waiting.first.delivery, copy.delivery]
    assert waiting.acks.acknowledged == []


def test_a_copy_of_a_waiting_message_is_delivered_again_when_the_worker_stops() -> None:
    waiting = Waiting()
    copy = waiting.message(2)
    assert waiting.in_flight.admit(copy) is None
    waiting.in_flight.process.stopping = True
    waiting.thread.join(TIMEOUT)
    assert waiting.first.delivery.deferred
    assert copy.delivery.deferred
    assert waiting.acks.acknowledged == []


def test_a_copy_of_a_message_that_must_not_run_is_acknowledged() -> None:
    waiting = Waiting(state="succeeded")
    assert waiting.in_flight.admit(waiting.message(2)) is None
    assert waiting.proceed() is None
    assert not waiting.first.delivery.deferred
    assert waiting.acks.acknowledged == [2]


@pytest.mark.parametrize("redelivered", [True, False])
def test_a_waiting_message_does_not_run_when_its_connection_is_gone(redelivered: bool) -> None:
    """It is delivered again, and would run twice."""
    waiting = Waiting(redelivered=redelivered)
    waiting.first.delivery.stale = True
    assert waiting.proceed() is None
    assert waiting.in_flight._claiming == {}
    assert waiting.in_flight.held() == []


def test_a_claim_is_given_back_before_the_message_of_a_paused_job_is_parked() -> None:
    """With the claim, its copy that is published when the job goes on would be dropped as held by this worker."""
    waiting = Waiting()
    copy = waiting.message(2)
    assert waiting.in_flight.admit(copy) is None
    waiting.in_flight.apply_controls([JobControl(1, "paused", 1)])
    assert waiting.proceed() is None
    assert waiting.in_flight.done == ["given back", "parked"]
    assert waiting.first.delivery.deferred
    assert copy.delivery.deferred
    assert waiting.acks.acknowledged == []


def test_a_message_that_can_not_be_begun_is_delivered_again_instead_of_running_untracked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def claim(_: Attempt) -> Claim:
        raise ZeroDivisionError

    in_flight = PlayedInFlight(claim)
    message = Delivered(Stamp(1, 0, 1), redelivered=True)
    assert in_flight.admit(message) is None
    assert message.delivery.deferred
    assert "is delivered again" in caplog.text
    assert in_flight.attempts() == []
    assert in_flight._claiming == {}


def test_a_message_that_can_not_be_parked_leaves_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    """With the turn kept, an item that must run alone would wait for ever."""

    def park(_: Attempt) -> None:
        raise RuntimeError("can't start new thread")

    waiting = Waiting(redelivered=False)
    waiting.in_flight._parking.park = park  # type: ignore[assignment,method-assign]
    waiting.in_flight.apply_controls([JobControl(1, "paused", 1)])
    assert waiting.proceed() is None
    assert waiting.first.delivery.deferred
    assert "a message can't begin" in caplog.text
    assert waiting.in_flight._isolation._running == {}


def test_the_state_of_a_job_that_simply_runs_is_not_kept() -> None:
    """A worker sees many jobs in its life."""
    in_flight = PlayedInFlight()
    for job in range(1, 100):
        in_flight.apply_controls([JobControl(job, "running", 0), JobControl(job, "completed", 0)])
    assert in_flight._controls == {}


def test_a_state_that_keeps_messages_from_running_is_kept() -> None:
    in_flight = PlayedInFlight()
    said = [
        JobControl(1, "cancelled", 1), JobControl(2, "paused", 1), JobControl(3, "running", 2),
        JobControl(4, "failed", 0), JobControl(5, "running", 0, stopping=True), JobControl(6, "completed", 2),
    ]  # fmt: skip
    in_flight.apply_controls(said)
    in_flight.apply_controls([JobControl(control.job, "running", 0) for control in said[:3]])  # said before, and late
    assert list(in_flight._controls.values()) == said


def admitted(in_flight: PlayedInFlight, item: int, customer: str) -> bool:
    """Whether the message of an item of a customer begins; else it is parked, and not acknowledged by the worker."""
    message = Delivered(Stamp(1, item, 1), args=(customer,))
    began = in_flight.admit(message) is not None
    assert (in_flight.done, message.delivery.deferred) == ([] if began else ["parked"], not began)
    in_flight.done.clear()
    return began


def test_a_message_of_a_lane_that_is_held_back_is_parked() -> None:
    in_flight = PlayedInFlight()
    in_flight.apply_controls([JobControl(1, "running", 0, lane_by="0", holds={'"a"': 60.0, '"b"': -1.0})])
    in_flight.apply_controls([JobControl(1, "running", 0)])  # of a flush, which does not know of holds
    assert [admitted(in_flight, n, name) for n, name in enumerate("abc")] == [False, True, True]
    in_flight.apply_controls([JobControl(1, "running", 0, lane_by="0", holds={})])
    assert admitted(in_flight, 3, "a")


def test_a_message_of_a_job_that_is_held_back_is_parked() -> None:
    in_flight = PlayedInFlight()
    in_flight.apply_controls([JobControl(1, "running", 0, holds={"*": 60.0})])
    assert not admitted(in_flight, 0, "a")
    in_flight.apply_controls([JobControl(1, "running", 0, holds={"*": -1.0})])
    assert admitted(in_flight, 1, "a")


def test_a_hold_that_is_over_is_not_kept() -> None:
    in_flight = PlayedInFlight()
    in_flight.apply_controls([JobControl(job, "running", 0, holds={"*": -1.0}) for job in range(1, 100)])
    assert list(in_flight._held_back) == [99]
