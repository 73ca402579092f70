"""Renews the lease of the jobs that this process submits: a submission whose lease ran out has broken off."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from callboard.middleware.process.periodic import Periodic
from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.writes import submission


@dataclass(slots=True)
class SubmissionLease:
    """The jobs that this process submits. A thread of its own renews their leases, so that a source of items may be
    slow, or block. `write` runs a statement on a connection of the process.
    """

    write: Callable[[Callable[[Conn], None]], Any]
    _jobs: list[int] = field(default_factory=list)
    _periodic: Periodic = field(init=False)

    def __post_init__(self) -> None:
        self._periodic = Periodic("submit", timings.SUBMISSION_LEASE_SECONDS / 3, self._renew)

    @contextmanager
    def held(self, job: int) -> Iterator[None]:
        """Keep the job's lease while the block runs; the job must have been created, or reopened, just before."""
        self._jobs.append(job)
        self._periodic.start()
        try:
            yield
        finally:
            self._jobs.remove(job)

    def _renew(self) -> None:
        if jobs := set(self._jobs):
            self.write(lambda conn: submission.keep_submitting(conn, jobs))

    def stop(self) -> None:
        """End the thread: the leases run out if their submissions do not end before."""
        self._periodic.stop(0)
