"""The tenant, key and metadata of the jobs that a worker works on: read once a job, when an actor asks."""

from functools import partial

from callboard.middleware.process.process import Process
from callboard.sql.rows import JobFacts
from callboard.sql.writes import jobs

#: The most jobs that are cached; then the cache begins anew.
MAX_JOBS = 1_000


class JobFactsCache:
    """The facts of jobs. Any thread may ask."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._facts: dict[int, JobFacts] = {}

    def of(self, job: int) -> JobFacts:
        """Return the facts of a job. Waits for a database that is away; raises Stopping when the process stops then."""
        found = self._facts.get(job)
        if found is None:
            found = self._process.retry_write(partial(jobs.job_facts, job=job))
            if len(self._facts) >= MAX_JOBS:
                self._facts.clear()
            self._facts[job] = found
        return found
