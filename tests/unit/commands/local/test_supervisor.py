"""A process that ends by itself is restarted, after a pause that grows while it does not stay up."""

from itertools import pairwise
from pathlib import Path

import pytest

from callboard.commands.local.supervisor import (
    CHECK_SECONDS,
    LONGEST_PAUSE_SECONDS,
    STEADY_SECONDS,
    ManagedProcess,
    Supervisor,
)
from callboard.commands.services import NotStarted
from tests.support.timer import Timer
from tests.support.workers import wait_until


class Service:
    """Runs, or can't be started."""

    def __init__(self, *, startable: bool = True) -> None:
        self.runs = False
        self.startable = startable
        self.starts: list[float] = []
        self.now = 0.0

    def start(self) -> None:
        self.starts.append(self.now)
        if not self.startable:
            raise NotStarted("it can't")
        self.runs = True

    def managed(self) -> ManagedProcess:
        return ManagedProcess("service", lambda: self.runs, self.start, Path("service.log"), started_at=0.0)


def check(service: Service, process: ManagedProcess, seconds: float) -> None:
    """Time passes."""
    end = service.now + seconds
    while service.now < end:
        service.now = round(service.now + CHECK_SECONDS, 3)
        process.check(service.now)


def test_running_process_is_left_alone() -> None:
    service = Service()
    service.runs = True
    check(service, service.managed(), 10)
    assert service.starts == []


def test_pause_grows_while_it_cannot_be_started(capsys: pytest.CaptureFixture[str]) -> None:
    service = Service(startable=False)
    check(service, service.managed(), 200)
    starts = service.starts
    pauses = [round(later - before, 3) for before, later in pairwise(starts)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE_SECONDS, abs=2 * CHECK_SECONDS)
    lines = capsys.readouterr().err.splitlines()
    ended = "callboard: service ended unexpectedly (its log: service.log)"
    assert lines[0] == f"{ended}; restarting it in 0.5 s"
    assert lines[1] == "callboard: it can't; restarting it in 1 s"


def test_pause_is_short_again_after_it_ran_for_long() -> None:
    service, pauses = Service(), []
    process = service.managed()
    for seconds in (1.0, 1.0, STEADY_SECONDS + 1, 1.0):
        ended, service.runs = service.now, False
        check(service, process, 0.0)
        while not service.runs:
            check(service, process, CHECK_SECONDS)
        pauses.append(service.now - ended)
        check(service, process, seconds)
    assert pauses[1] > pauses[0]
    assert pauses[3] == pytest.approx(pauses[0], abs=CHECK_SECONDS)


def test_nothing_is_restarted_after_stop_restarting() -> None:
    service = Service()
    supervisor = Supervisor([service.managed()])
    supervisor.start()
    assert wait_until(lambda: service.runs, 300)
    supervisor.stop_restarting()
    service.runs = False
    count = len(service.starts)
    timer = Timer()
    assert not wait_until(lambda: len(service.starts) > count, 4 * CHECK_SECONDS)
    supervisor.close()
    assert timer.seconds < 60
