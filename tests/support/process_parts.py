"""Parts of a process without a database or a worker around them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from callboard.middleware.attempts.in_flight import InFlight
from callboard.middleware.journal.journal import Entry
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.consumers import Consumers
from callboard.middleware.process.process import Process
from callboard.sql.rows import Claim, JobControl


class NoDatabase:
    """A pool whose connections are None."""

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[None]:
        yield


def process_without_database() -> Process:
    """A worker process; statements must be replaced by the test, since they get None as their connection."""
    process = Process("")
    process._pool = NoDatabase()  # type: ignore[assignment]
    process.worker = 1
    return process


@contextmanager
def process_on(url: str) -> Iterator[Process]:
    """A worker process on a database, in which the worker is not registered."""
    process = Process(url)
    process.worker = 1
    yield process
    process.close()


class RecordedAttempts:
    """The attempts of a process that runs none; notes which entries were acknowledged."""

    def __init__(self, *, expects_more: Callable[[int], bool] = lambda _: False) -> None:
        self.acknowledged: list[Entry] = []
        self.expects_more = expects_more

    def attempts(self) -> list[Attempt]:
        return []

    def typical_seconds(self, _: str) -> float:
        return 0.0

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        self.acknowledged += entries

    def apply_controls(self, controls: Sequence[JobControl]) -> None:
        """Nobody here works on these jobs."""


class PlayedInFlight(InFlight):
    """Attempts in flight without a database: `claim` answers for it. Notes what ended, was given back or parked."""

    def __init__(self, claim: Callable[[Attempt], Claim | None] | None = None) -> None:
        self.process = process_without_database()
        super().__init__(self.process, Consumers(), lambda: None, lambda: None)
        self.ended: list[Entry] = []
        self.asked: list[tuple[int, bool]] = []  # the claims: item, and whether it runs alone
        self.done: list[str] = []  # in order
        self.claim = claim
        played: Any = SimpleNamespace(add=self.ended.append)
        self.journal = played
        parking: Any = SimpleNamespace(park=lambda _: self.done.append("parked"))
        self._parking = parking

    def _claim(self, attempt: Attempt, *, alone: bool = False) -> Claim | None:
        assert self.claim is not None, "this message must not be claimed"
        self.asked.append((attempt.item, alone))
        return self.claim(attempt)

    def _release_claim(self, attempt: Attempt) -> None:
        self.done.append("given back")
