"""Of the messages that come for one item, the one that carries its attempt runs, and none is acknowledged before."""

import threading

import pytest

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.stamp import Stamp
from callboard.sql.rows import Claim, JobControl
from tests.support.deliveries import Delivered, RecordedAcks
from tests.support.process_parts import PlayedInFlight
from tests.support.workers import wait_until

TIMEOUT = 60.0


def test_the_next_attempt_runs_though_a_copy_of_the_last_is_being_asked_for() -> None:
    """A worker that was killed between a commit and its acknowledgement leaves both."""
    asked, go_on = threading.Event(), threading.Event()

    def claim(attempt: Attempt) -> Claim | None:
        if attempt.number == 1:
            asked.set()
            assert go_on.wait(TIMEOUT)
            return None
        return Claim("waiting", 2, 0, 1, taken=True, holder_alive=True)

    hand = PlayedInFlight(claim)
    last: list[Attempt | None] = []

    def take(attempt: int) -> Attempt | None:
        return hand.admit(Delivered(Stamp(1, 0, attempt, suspect=attempt > 1), redelivered=True))

    asking = threading.Thread(target=lambda: last.append(take(1)))
    asking.start()
    assert asked.wait(TIMEOUT)
    assert take(1) is None
    found = take(2)
    go_on.set()
    asking.join(TIMEOUT)
    assert last == [None]
    assert found is not None
    assert found.number == 2


class Waiting:
    """A message whose item waits for its turn, while another has the process to itself."""

    def __init__(self, *, redelivered: bool = True, state: str = "waiting") -> None:
        self.taken: list[Attempt | None] = []
        self.acks = RecordedAcks()
        found = Claim(state, 1, 0, 1, taken=True, holder_alive=True) if state == "waiting" else None
        self.hand = PlayedInFlight(lambda _: found)
        self.alone = Attempt(1, 9, 3, [], {})
        self.hand._isolation.enter(self.alone, alone=True)
        self.first = self.message(1, redelivered=redelivered)
        self.thread = threading.Thread(
            target=lambda: self.taken.append(self.hand.admit(self.first)), daemon=True
        )
        self.thread.start()
        assert wait_until(lambda: not redelivered or len(self.hand._claiming) == 1, TIMEOUT)

    def message(self, tag: int, *, redelivered: bool = True) -> Delivered:
        return Delivered(Stamp(1, 0, 1), redelivered=redelivered, acks=self.acks, tag=tag)

    def go_on(self) -> Attempt | None:
        self.hand._isolation.leave(self.alone)
        self.thread.join(TIMEOUT)
        (taken,) = self.taken
        return taken


def test_a_copy_of_what_waits_is_settled_with_it() -> None:
    """The connection of the first is gone meanwhile, so that only the copy is left of the message."""
    waiting = Waiting()
    waiting.first.delivery.stale = True
    copy = waiting.message(2)
    assert waiting.hand.admit(copy) is None
    assert copy.delivery.deferred
    taken = waiting.go_on()
    assert taken is not None
    assert taken.deliveries == [waiting.first.delivery, copy.delivery]
    assert waiting.acks.acknowledged == []


def test_a_copy_of_what_waits_comes_again_when_the_worker_stops() -> None:
    waiting = Waiting()
    copy = waiting.message(2)
    assert waiting.hand.admit(copy) is None
    waiting.hand.process.stopping = True
    waiting.thread.join(TIMEOUT)
    assert waiting.first.delivery.deferred
    assert copy.delivery.deferred
    assert waiting.acks.acknowledged == []


def test_a_copy_of_what_must_not_run_goes() -> None:
    waiting = Waiting(state="succeeded")
    assert waiting.hand.admit(waiting.message(2)) is None
    assert waiting.go_on() is None
    assert not waiting.first.delivery.deferred
    assert waiting.acks.acknowledged == [2]


@pytest.mark.parametrize("redelivered", [True, False])
def test_what_waited_does_not_run_when_its_connection_is_gone(redelivered: bool) -> None:
    """It is delivered again, and would run twice."""
    waiting = Waiting(redelivered=redelivered)
    waiting.first.delivery.stale = True
    assert waiting.go_on() is None
    assert waiting.hand._claiming == {}
    assert waiting.hand.held() == []


def test_what_a_paused_job_keeps_is_given_back_before() -> None:
    """Sent again as the job goes on, it would else find itself held, and be dropped."""
    waiting = Waiting()
    copy = waiting.message(2)
    assert waiting.hand.admit(copy) is None
    waiting.hand.apply_controls([JobControl(1, "paused", 1)])
    assert waiting.go_on() is None
    assert waiting.hand.done == ["given back", "parked"]
    assert waiting.first.delivery.deferred
    assert copy.delivery.deferred
    assert waiting.acks.acknowledged == []


def test_a_message_that_can_not_be_judged_comes_again_instead_of_running_untracked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def claim(_: Attempt) -> Claim:
        raise ZeroDivisionError

    hand = PlayedInFlight(claim)
    message = Delivered(Stamp(1, 0, 1), redelivered=True)
    assert hand.admit(message) is None
    assert message.delivery.deferred
    assert "is delivered again" in caplog.text
    assert hand.attempts() == []
    assert hand._claiming == {}


def test_what_can_not_be_kept_after_its_turn_came_leaves_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    """Else nothing has the process to itself any more: who is to, waits for ever."""

    def park(_: Attempt) -> None:
        raise RuntimeError("can't start new thread")

    waiting = Waiting(redelivered=False)
    waiting.hand._parking.park = park  # type: ignore[assignment,method-assign]
    waiting.hand.apply_controls([JobControl(1, "paused", 1)])
    assert waiting.go_on() is None
    assert waiting.first.delivery.deferred
    assert "can't be begun" in caplog.text
    assert waiting.hand._isolation._running == set()


def test_what_jobs_say_that_keeps_nothing_from_running_is_not_remembered() -> None:
    """A worker sees many jobs in its life."""
    hand = PlayedInFlight()
    for job in range(1, 100):
        hand.apply_controls([JobControl(job, "running", 0), JobControl(job, "completed", 0)])
    assert hand._controls == {}


def test_what_keeps_messages_from_running_is_remembered() -> None:
    hand = PlayedInFlight()
    said = [
        JobControl(1, "cancelled", 1), JobControl(2, "paused", 1), JobControl(3, "running", 2),
        JobControl(4, "failed", 0), JobControl(5, "running", 0, stopping=True), JobControl(6, "completed", 2),
    ]  # fmt: skip
    hand.apply_controls(said)
    hand.apply_controls(
        [JobControl(control.job, "running", 0) for control in said[:3]]
    )  # said before, and late
    assert list(hand._controls.values()) == said
