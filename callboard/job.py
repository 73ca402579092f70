"""A job as its owner holds it, and the block that puts plain sends into one."""

import asyncio
import getpass
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import dramatiq
import psycopg

from callboard.middleware.runtime import Runtime
from callboard.middleware.submission import actor_lookup
from callboard.middleware.submission.actor_lookup import Called
from callboard.middleware.submission.enqueue import current_job
from callboard.middleware.tracking import runtime_of
from callboard.sql.errors import cut_off
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.reads.queries import Query
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import actions, retry, submission
from callboard.sql.writes.actions import NoSuchJob, Requester
from callboard.sql.writes.retry import RetrySelection

T = TypeVar("T")


class Job:
    """A job. Everything it tells is read when it is asked for; the methods that begin with `a` block no event loop."""

    def __init__(self, number: int, runtime: Runtime) -> None:
        self.id = number
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"Job({self.id})"

    def status(self) -> dict[str, Any]:
        """The job as the API gives it (`state`, `total`, `succeeded`, …); raises NoSuchJob."""
        found = self._ask(queries.job(self.id))
        if found is None:
            raise NoSuchJob(f"there is no job {self.id}")
        return found

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the job's end, at most `timeout` seconds; returns its status, raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.status())["state"] not in JOB_FINAL:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {self.id} is {status['state']} after {timeout} s")
            time.sleep(0.1)
        return status

    def items(self, state: str | None = None, *, stage: int | None = None) -> Iterator[dict[str, Any]]:
        """The job's items in order, all or those of a state, read page by page; of a job of stages those of a stage
        (0, 1, …), or of all of them one after the other: each says its `job`. Raises ValueError for no such stage.
        """
        stages = self.status()["stages"]
        wanted = [one["job"] for one in stages if stage in (None, one["stage"])]
        if stage is not None and not wanted:
            raise ValueError(f"job {self.id} has no stage {stage}")
        for job in wanted or [self.id]:
            after: int | None = -1
            while after is not None:
                page, after = self._ask(queries.items(job, state=state, after=after, limit=1000))
                yield from page

    def errors(self) -> list[dict[str, Any]]:
        """The job's errors, grouped by type and place, each with an example."""
        return self._ask(queries.errors(self.id))

    async def astatus(self) -> dict[str, Any]:
        """As `status`."""
        return await asyncio.to_thread(self.status)

    async def await_done(self, timeout: float | None = None) -> dict[str, Any]:
        """As `wait`."""
        last: dict[str, Any] = {}
        async with asyncio.timeout(timeout):
            async for status in self.events():
                last = status
        return last

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The job's status each time it changed, up to and with its end."""
        seen = None
        while seen is None or seen["state"] not in JOB_FINAL:
            status = await self.astatus()
            if status != seen:
                yield status
            seen = status
            await asyncio.sleep(0.25)

    # Control ---------------------------------------------------------------------------------------------------------

    def cancel(self, reason: str | None = None) -> dict[str, Any]:
        """Start nothing more of it: within a second nothing starts, and it is `cancelled` when what is in hand ended.

        Returns its status, as `pause` and `resume` do; raises NotPossible when it ended otherwise, and ValueError for a
        `reason` of more than 500 characters.
        """
        self._tell(lambda conn: actions.cancel(conn, self.id, acting("python"), reason=reason))
        return self.status()

    def pause(self) -> dict[str, Any]:
        """Start nothing more of it until it is resumed; raises NotPossible when it is over."""
        self._tell(lambda conn: actions.pause(conn, self.id, acting("python")))
        return self.status()

    def resume(self) -> dict[str, Any]:
        """Go on with it after a pause; raises NotPossible when it is over."""
        self._tell(lambda conn: actions.resume(conn, self.id, acting("python")))
        return self.status()

    def retry(
        self,
        states: Iterable[str] | None = None,
        *,
        items: Iterable[int] | None = None,
        error_type: str | None = None,
    ) -> int:
        """Give items that ended without success another attempt; a job that is over is open again. Returns how many.

        All that failed, or those in `states` (failed, skipped, cancelled), of these numbers, of this type of error.
        Raises ValueError for what can't be chosen, NotPossible while the job is being stopped.
        """
        choice = RetrySelection(states, items, error_type)
        return self._tell(lambda conn: retry.retry(conn, self.id, acting("python"), choice))

    def limit(self, **changes: Any) -> dict[str, Any]:
        """Change what it may do at most, from now on; None takes a limit away. Returns its status.

        `max_failures`, `concurrency`, `concurrency_by`, `rate`, `priority`, `deadline`, `at`, `keep`, as `submit` has
        them. Of a job that is over, all but `keep` hold when it is opened again. Raises ValueError for what makes no
        sense.
        """
        self._tell(lambda conn: actions.limit(conn, self.id, acting("python"), changes))
        return self.status()

    def delete(self) -> None:
        """It is gone at once, for everybody; its rows are cleared away by the sweep, a few at a time.

        Raises NotPossible while it is open, NoSuchJob when it is gone.
        """
        self._tell(lambda conn: actions.delete(conn, self.id, acting("python")))

    async def acancel(self, reason: str | None = None) -> dict[str, Any]:
        """As `cancel`."""
        return await asyncio.to_thread(self.cancel, reason)

    async def apause(self) -> dict[str, Any]:
        """As `pause`."""
        return await asyncio.to_thread(self.pause)

    async def aresume(self) -> dict[str, Any]:
        """As `resume`."""
        return await asyncio.to_thread(self.resume)

    async def alimit(self, **changes: Any) -> dict[str, Any]:
        """As `limit`."""
        return await asyncio.to_thread(partial(self.limit, **changes))

    async def adelete(self) -> None:
        """As `delete`."""
        await asyncio.to_thread(self.delete)

    async def aretry(self, states: Iterable[str] | None = None, **chosen: Any) -> int:
        """As `retry`."""
        return await asyncio.to_thread(partial(self.retry, states, **chosen))

    def actions(self) -> list[dict[str, Any]]:
        """Who did what to it, the latest first: `action`, `who`, `via`, `detail`, `done_at`."""
        return self._ask(queries.actions(self.id))[0]

    def callbacks(self) -> list[dict[str, Any]]:
        """Whom its ends called, the latest end first: `id`, `on` (what it ended as), `target`, `state` (waiting,
        delivered, gave up), `tries`, `due_at`, `error` of the last try.
        """
        return self._ask(queries.callbacks(self.id))

    def _ask(self, query: Query[T]) -> T:
        return self._tell(lambda conn: queries.run(conn, query))

    def _tell(self, say: Callable[[Conn], T]) -> T:
        """Once more when its connection was lost, as when the database was restarted: said twice is done once."""
        try:
            return self._runtime.write(say)
        except psycopg.OperationalError as error:
            if not cut_off(error):
                raise
            self._runtime.process.pool.check()
            return self._runtime.write(say)


def acting(via: str) -> Requester:
    """Who runs this process, acting `via` Python or the command line."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return Requester(via, f"{user}@{socket.gethostname()}")


def get(number: int) -> Job:
    """The job with this id; raises NoSuchJob."""
    found = Job(int(number), runtime_of(dramatiq.get_broker()))
    found.status()
    return found


async def aget(number: int) -> Job:
    """As `get`, for async callers."""
    return await asyncio.to_thread(get, number)


@contextmanager
def job(
    name: str, *, metadata: dict[str, Any] | None = None, key: str | None = None,
    keep: timedelta | str | None = None, on_complete: Called = None, on_fail: Called = None, on_cancel: Called = None,
) -> Iterator[Job]:  # fmt: skip
    """Every plain `send` inside the block becomes an item of one job; it is sealed at the end of the block.
    `key` and `keep` are as `submit` has them.

    When the block raises, nothing more is sent, the job is sealed all the same, and what was sent goes on. When its
    process dies in it, nobody seals the job: without a key it is stopped, `failed`, with the reason.
    In an actor too they go at once, whatever becomes of its item. Callbacks are those of `submit`.
    """
    limits = Limits(keep=keep)
    broker = dramatiq.get_broker()
    runtime = runtime_of(broker)
    targets = actor_lookup.targets(
        runtime.write, broker, on_complete=on_complete, on_fail=on_fail, on_cancel=on_cancel
    )
    made = runtime.write(
        lambda conn: submission.create_job(
            conn, name=name, key=key, tenant="", actor=None, queue=None, metadata=metadata or {}, created_by=None,
            limits=limits, targets=targets,
        )
    )  # fmt: skip
    token = current_job.set(made.job)
    try:
        with runtime.submissions.held(made.job):
            yield Job(made.job, runtime)
    finally:
        current_job.reset(token)
        runtime.write(lambda conn: submission.seal_job(conn, made.job))
