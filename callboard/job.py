"""The `Job` object with which an app reads and controls a job, and the block that puts plain sends into one job."""

import asyncio
import functools
import getpass
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Token
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

import dramatiq
import psycopg

from callboard.middleware.runtime import Runtime
from callboard.middleware.submission import actor_lookup
from callboard.middleware.submission.actor_lookup import Callbacks
from callboard.middleware.submission.enqueue import open_blocks
from callboard.middleware.submission.item_encoding import key_texts
from callboard.middleware.tracking import runtime_of
from callboard.sql.errors import is_connection_lost
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn
from callboard.sql.reads import exports, queries
from callboard.sql.reads.job_view import concerned
from callboard.sql.reads.queries import Query
from callboard.sql.states import ITEM_STATES, JOB_FINAL
from callboard.sql.writes import actions, refusals, retry_action, submission
from callboard.sql.writes.requests import NoSuchJob, Requester, check_flag, check_text
from callboard.sql.writes.retry_action import RetrySelection
from callboard.sql.writes.run_again import Again, run_again

P = ParamSpec("P")
T = TypeVar("T")

#: Maximum characters of a text by which items are searched.
MAX_TEXT_CHARACTERS = 100_000
#: Items of a page, and the most characters of the arguments and the result of each: a longer one is read alone.
PAGE_ITEMS, PAGE_CHARACTERS = 200, 65_536
#: Seconds between two reads of a job in `wait`, and in `await_done` and `events`.
WAIT_SECONDS, EVENTS_SECONDS = 0.1, 0.25


def _in_thread(method: Callable[Concatenate["Job", P], T]) -> Callable[Concatenate["Job", P], Coroutine[Any, Any, T]]:
    async def run(self: "Job", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    functools.update_wrapper(run, method)
    run.__doc__ = f"Like `{method.__name__}`, without blocking the event loop."
    return run


class Job:
    """A job. Every call reads the database; the methods that begin with `a` do not block the event loop."""

    def __init__(self, number: int, runtime: Runtime) -> None:
        self.id = number
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"Job({self.id})"

    def status(self) -> dict[str, Any]:
        """Return the job with the fields of the API: `state`, `total`, `succeeded`, `failed`, `progress` (0 to 1) and
        so on.

        Raises NoSuchJob if it was deleted.
        """
        found = self._ask(queries.job(self.id))
        if found is None:
            raise NoSuchJob(f"there is no job {self.id}")
        return found

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until the job has ended, at most `timeout` seconds, and return its status. Raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.status())["state"] not in JOB_FINAL:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {self.id} is {status['state']} after {timeout} s")
            time.sleep(WAIT_SECONDS)
        return status

    def items(
        self, state: str | None = None, *, error: str | None = None, key: str | None = None, stage: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the items in order, read page by page: all, or those in a `state`, those that failed with an `error`
        (the `id` or the `type` of one of `errors`), or those with a `key`. Each has its whole arguments and result.

        For a job of stages, yield the items of one `stage` (0, 1, …), or of all stages in order; `job` of each item is
        the id of its stage. Raises ValueError if there is no such state or stage.
        """
        for name, text in (("error", error), ("key", key)):
            check_text(name, text, MAX_TEXT_CHARACTERS)
        if state not in (None, *ITEM_STATES):
            raise ValueError(f"state must be one of {', '.join(ITEM_STATES)}, not {state!r}")
        stages = self.status()["stages"]
        wanted = [one["job"] for one in stages if stage is None or (stage == one["stage"] and type(stage) is int)]
        if stage is not None and not wanted:
            raise ValueError(f"job {self.id} has no stage {stage!r}: it has {len(stages)} stages, numbered from 0")
        keys = key_texts(key)
        for job in wanted or [self.id]:
            after: int | None = -1
            while after is not None:
                query = queries.items(
                    job, state=state, error=error, keys=keys, after=after, limit=PAGE_ITEMS, cap=PAGE_CHARACTERS
                )
                page, after = self._ask(query)
                for item in page:
                    rest = exports.rest(item)
                    yield (rest and self._ask(rest)) or item

    def errors(self) -> list[dict[str, Any]]:
        """Return the job's error groups: each has one type, place and `pattern` of the message.

        A group has an `id`, the number of items that `failed` for good, the number of attempts that were `retried`, and
        an example. `pattern` is None in groups for the messages beyond the maximum number of groups of a job.
        """
        return self._ask(queries.errors(self.id))

    def actions(self) -> list[dict[str, Any]]:
        """Return the actions on the job, the latest first: `action`, `who`, `via`, `address`, `detail`, `done_at`."""
        return self._ask(queries.actions(self.id))[0]

    def callbacks(self) -> list[dict[str, Any]]:
        """Return the job's callbacks, those of its latest end first.

        Each has `id`, `on` (the final state of the job), `target`, `state` (waiting, delivered, gave up), `tries`,
        `due_at`, and `error` of the last try.
        """
        return self._ask(queries.callbacks(self.id))

    astatus = _in_thread(status)

    async def await_done(self, timeout: float | None = None) -> dict[str, Any]:
        """Like `wait`, without blocking the event loop."""
        last: dict[str, Any] = {"state": "unknown"}
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                async for status in self.events():
                    last = status
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"job {self.id} is {last['state']} after {timeout} s") from None
        return last

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the job's status now and at each change; the last one is its status at its end."""
        seen = None
        while seen is None or seen["state"] not in JOB_FINAL:
            status = await self.astatus()
            if status != seen:
                yield status
            seen = status
            await asyncio.sleep(EVENTS_SECONDS)

    # Control ---------------------------------------------------------------------------------------------------------

    def cancel(self, reason: str | None = None, *, dry_run: bool = False) -> dict[str, Any]:
        """Cancel the job, and return its status. Within a second no more items start; the job is `cancelled` when the
        running items have ended. `dry_run`: change nothing, and return `{"items": …}`, the number of items that would
        never start.

        Raises NotPossible if it has ended otherwise, and ValueError for a `reason` of more than 500 characters.
        """
        check_flag("dry_run", dry_run)
        if dry_run:
            return {"items": self._act(would_cancel)}
        self._act(actions.cancel, reason=reason)
        return self.status()

    def pause(self) -> dict[str, Any]:
        """Start no more items until the job is resumed, and return its status. Raises NotPossible if it has ended."""
        self._act(actions.pause)
        return self.status()

    def resume(self) -> dict[str, Any]:
        """Continue the job after a pause, and return its status. Raises NotPossible if it has ended."""
        self._act(actions.resume)
        return self.status()

    def retry(
        self,
        states: Iterable[str] | None = None,
        *,
        items: Iterable[int] | None = None,
        error: str | None = None,
        dry_run: bool = False,
    ) -> int:
        """Give items that ended without success another attempt, and return how many; a finished job runs again.
        `dry_run`: change nothing, and return how many items would be retried.

        `states`: failed (if None), skipped, cancelled. `items`: only those with these numbers. `error`: only those that
        failed with it, the `id` or the `type` of one of `errors`. Raises ValueError for an invalid selection,
        NoSuchItem for a number that the job has not, and NotPossible while the job is being stopped.
        """
        check_flag("dry_run", dry_run)
        act = would_retry if dry_run else retry_action.retry
        return self._act(act, RetrySelection(states, items, error))

    def limit(self, /, **changes: Any) -> dict[str, Any]:
        """Change the job's limits from now on, and return its status; None removes a limit.

        The limits are `max_failures`, `concurrency`, `concurrency_by`, `lanes`, `rate`, `priority`, `deadline`, `at`
        and `keep`, as in `submit`. In a finished job, all except `keep` apply when it is retried. Raises ValueError for
        invalid values.
        """
        self._act(actions.limit, changes)
        return self.status()

    def delete(self) -> None:
        """Delete the job with its items, results and history. It disappears at once; the sweep deletes its rows in
        chunks.

        Raises NotPossible while it is open, and NoSuchJob if it is already deleted.
        """
        self._act(actions.delete)

    def seal(self) -> dict[str, Any]:
        """Make a job that was submitted as `open`, or whose submission was interrupted, take no more items from
        outside. Return its status. Raises NotPossible for a job that is being submitted, or was stopped.
        """
        self._act(actions.seal)
        return self.status()

    def run_again(
        self, /, states: Iterable[str] | None = None, *, name: str | None = None, key: str | None = None,
        metadata: dict[str, Any] | None = None, **limits: Any,
    ) -> "Job":  # fmt: skip
        """Make a new job of the items of this finished job, and return it. The database copies the items.

        `states`: only items in these states: succeeded, failed, skipped, cancelled. The other options are those of
        `submit`; their defaults are the values of the old job, except for `at` and `deadline`. None removes a limit.
        Items that other items have sent are not copied. Raises NotPossible while the job is open, KeyInUse, and
        ValueError for invalid values.
        """
        again = Again(states, name, key, metadata, limits)
        number, new = run_again(self._runtime.write, self.id, acting("python"), again)
        if new:
            self._runtime.publish_job(number)
        return Job(number, self._runtime)

    arun_again = _in_thread(run_again)
    aseal = _in_thread(seal)
    acancel = _in_thread(cancel)
    apause = _in_thread(pause)
    aresume = _in_thread(resume)
    aretry = _in_thread(retry)
    alimit = _in_thread(limit)
    adelete = _in_thread(delete)

    def _ask(self, query: Query[T]) -> T:
        """Run a query; retry it once if the connection is lost, for example by a restart of the database."""
        try:
            return self._runtime.write(lambda conn: queries.run(conn, query))
        except psycopg.Error as error:
            if not is_connection_lost(error):
                raise
            return self._runtime.write(lambda conn: queries.run(conn, query))

    def _act(self, action: Callable[Concatenate[Conn, int, Requester, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an action on the job, without a retry: if a COMMIT was done but not answered, a second try would find
        nothing to do, and return that.
        """
        return self._runtime.write(lambda conn: action(conn, self.id, acting("python"), *args, **kwargs))


def would_cancel(conn: Conn, job: int, by: Requester) -> int:
    """Return how many items a cancellation would prevent from starting. Raises the errors of the cancellation."""
    refusals.check(conn, job, by, "cancel")
    found = queries.run(conn, queries.job(job))
    return concerned(found, "cancel") if found else 0


def would_retry(conn: Conn, job: int, by: Requester, selection: RetrySelection) -> int:
    """Return how many items a retry would give another attempt. Raises the errors of the retry."""
    refusals.check(conn, job, by, "retry", items=selection.items)
    return queries.run(conn, queries.retried_items(job, selection.wanted, selection.items, selection.error))


def acting(via: str) -> Requester:
    """Return the requester of an action: the user of this process, `via` Python or the command line."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return Requester(via, f"{user}@{socket.gethostname()}")


def get(number: int) -> Job:
    """Return the job with this id. Raises NoSuchJob."""
    if type(number) is not int:
        raise TypeError(f"the id of a job must be an int, not {number!r:.100}")
    found = Job(number, runtime_of(dramatiq.get_broker()))
    if found.id > queries.MAX_ID:
        raise NoSuchJob(f"there is no job {number}")
    found.status()
    return found


async def aget(number: int) -> Job:
    """Like `get`, without blocking the event loop."""
    return await asyncio.to_thread(get, number)


@contextmanager
def job(
    name: str, *, metadata: dict[str, Any] | None = None, key: str | None = None, keep: timedelta | str | None = None,
    on_complete: Callbacks = None, on_fail: Callbacks = None, on_cancel: Callbacks = None, key_reuse: bool = False,
) -> Iterator[Job]:  # fmt: skip
    """Make every plain `send` inside the block an item of one job, which is sealed at the end of the block.

        with callboard.job("newsletter") as job:
            for address in addresses:
                send_mail.send(address)

    The options are those of `submit`. Each message is published at once, also from an actor, whatever the outcome of
    its item. If the block raises, the job is sealed too, and the sent messages run. If the process dies in the block, a
    job without a key is stopped as `failed`, with the reason. Raises RuntimeError if the block ends in another thread
    or task than it began in, for example around the `yield` of a generator that a web framework runs; or if it ends
    before an inner block, as in generators that alternate. Then some messages are not in the job.
    """
    broker = dramatiq.get_broker()
    runtime = runtime_of(broker)
    limits = Limits(keep=keep)
    targets = actor_lookup.targets(runtime.write, broker, on_complete, on_fail, on_cancel)
    made = runtime.write(
        lambda conn: submission.create_job(
            conn, name=name, key=key, tenant="", actor=None, queue=None, metadata=metadata, created_by=None,
            limits=limits, targets=targets, key_reuse=key_reuse,
        )
    )  # fmt: skip
    token = open_blocks.set((*open_blocks.get(), (made.job, runtime.url)))
    process = os.getpid()
    try:
        with runtime.submissions.held(made.job):
            yield Job(made.job, runtime)
    finally:
        misfit = _end_block(made.job, token)
        if os.getpid() == process:  # a forked child that leaves the block has not opened the job
            runtime.write(lambda conn: submission.seal_job(conn, made.job))
    if misfit:
        raise RuntimeError(
            f"the block of job {made.job} ends {misfit}: the job is sealed, and messages sent elsewhere are not in it; "
            "don't use the block in a generator that another thread or task resumes"
        )


def _end_block(job: int, token: Token[tuple[tuple[int, str], ...]]) -> str | None:
    """Remove a block from the open blocks of this context; return how its end does not match its begin, or None."""
    blocks = open_blocks.get()
    try:
        open_blocks.reset(token)
    except ValueError:
        return "in another thread or task than it began in"
    # Don't reset the token: blocks that were open when this one began may have ended before it.
    if blocks[-1][0] == job:
        open_blocks.set(blocks[:-1])
        return None
    open_blocks.set(tuple(one for one in blocks if one[0] != job))
    return f"before the inner block of job {blocks[-1][0]}"
