"""Renews the leases of the jobs that this process submits. A submission whose lease expired counts as broken off."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from callboard.middleware.process.periodic import Periodic
from callboard.middleware.process.process import Process
from callboard.sql import timings
from callboard.sql.writes import submission

#: Seconds until the leases of locked jobs are renewed again.
LOCKED_PAUSE_SECONDS = 0.1


@dataclass(slots=True)
class SubmissionLease:
    """The jobs that this process submits. A thread renews their leases, so the source of the items may be slow."""

    process: Process
    _jobs: list[int] = field(default_factory=list)
    _periodic: Periodic = field(init=False)

    def __post_init__(self) -> None:
        self._periodic = Periodic("submit", math.inf, self._renew)

    @contextmanager
    def held(self, job: int) -> Iterator[None]:
        """Renew the job's lease while the block runs. The statement that created the job began the lease."""
        self._jobs.append(job)
        self._periodic.seconds = timings.SUBMISSION_LEASE_SECONDS / 3  # read here, because tests shorten it
        self._periodic.start()
        try:
            yield
        finally:
            self._jobs.remove(job)

    def _renew(self) -> float | None:
        jobs = set(self._jobs)
        locked = self.process.write(lambda conn: submission.renew_submissions(conn, jobs)) if jobs else []
        return LOCKED_PAUSE_SECONDS if locked else None

    def stop(self) -> None:
        """End the thread. The leases of submissions that still run expire."""
        self._periodic.stop(0)
