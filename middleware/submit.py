"""Submit: any number of items become rows, in chunks, without ever holding more than one chunk."""

import asyncio
import logging
import queue
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import dramatiq
import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware import addressee, inputs
from callboard.middleware.addressee import Called
from callboard.middleware.inputs import ItemKey
from callboard.middleware.job import Job, recorder_of
from callboard.middleware.outcome import clean
from callboard.middleware.recorder import Recorder
from callboard.sql import writes
from callboard.sql.limits import Limits, moment
from callboard.sql.states import JOB_FINAL
from callboard.sql.targets import Targets

log = logging.getLogger("callboard.submit")

#: Items in one transaction.
CHUNK = 5_000
#: Items after which tables may be others to PostgreSQL's planner.
MANY = CHUNK // 5


class SubmittedElsewhere(RuntimeError):
    """Another submission with the same key is at work on this job."""


def submit(
    actor: dramatiq.Actor[..., Any] | str, items: Iterable[Any], *, name: str | None = None, key: str | None = None,
    item_key: ItemKey = None, metadata: dict[str, Any] | None = None, tenant: str | None = None, priority: int = 0,
    created_by: str | None = None, max_failures: int | str | None = None, concurrency: int | None = None,
    rate: str | None = None, delay: timedelta | str | None = None, at: datetime | str | None = None,
    deadline: datetime | timedelta | str | None = None, keep: timedelta | str | None = None, chunk: int = 1,
    on_complete: Called = None, on_fail: Called = None, on_cancel: Called = None,
    concurrency_by: str | Mapping[Any, int] | None = None,
) -> Job:  # fmt: skip
    """Make a job of `items`, each one run of `actor` (an actor or its registered name), and start it.

    An item that is a dict gives keyword arguments, a list or tuple arguments, anything else one argument. `items` may
    be any iterable, endless ones apart; it is read as it is stored. With a `key`, the same key gives the same job, and
    a submission that broke off is taken up where it stands when it is submitted again. `item_key` is a field of the
    items or a function: the same item key is stored once in a job. `priority`: lower is first, as Dramatiq's.

    `max_failures`: more items than that, or a share of those that ended, and the job is stopped, `failed`: 10, "5%" (of
    at least 100), "5% of 1000". `concurrency`: items of it in RabbitMQ and in hand, over all workers. `concurrency_by`:
    the same of the items with the same value of an argument, by its name or its position: "customer_id=5", "0=5",
    {"customer_id": 5}. `rate`: items started, as "10/s" or "100/m". `delay`, `at`: nothing starts before. `deadline`:
    what has not started then is cancelled. Times have a zone; spans are timedeltas or texts like "90s", "2h". `keep`:
    the span from its end until it is deleted with all of its rows, or "forever"; else as CALLBOARD_KEEP says.
    `Job.limit` changes all of them.

    `chunk`: items that one message carries, up to 1,000: much cheaper for fast items. The actor gets them one by one
    all the same, or in a list if it is a `batch`; each has its own outcome and retries.

    `on_complete`, `on_fail`, `on_cancel`: an actor, its registered name, the URL of a webhook, or a list of these. When
    the job ends so, each actor gets a message with one dict, each webhook a signed POST of the same as JSON: the job as
    `Job.status` gives it, `job` its id, and `id`, which is the callback's. One that is opened again calls again at its
    next end, with a new id. With a `key` that has a job already, its own callbacks stay.

    Raises ValueError for options that make no sense, UnknownActor, BadItem, SubmittedElsewhere, and psycopg.Error when
    the database can't be reached. When it raises, a job with a key stays open to be taken up again; one without is
    stopped, `failed`, with the reason. So it is when its process dies, within a minute.
    """
    limits = Limits(
        max_failures, concurrency, rate, priority or None, deadline, start(delay, at), keep, concurrency_by
    )
    check_chunk(chunk)
    broker = dramatiq.get_broker() if isinstance(actor, str) else actor.broker
    targets = addressee.targets(
        recorder_of(broker), broker, on_complete=on_complete, on_fail=on_fail, on_cancel=on_cancel
    )
    intake = Intake.open(
        broker, actor, name, key, item_key, metadata, tenant, limits, targets, created_by, chunk
    )
    return take_in(intake, items)


def start(delay: timedelta | str | None, at: datetime | str | None) -> datetime | timedelta | str | None:
    """When a job starts; raises ValueError when that is said twice, or makes no sense."""
    if delay is not None and at is not None:
        raise ValueError("delay and at say the same: give one of them")
    return at if delay is None else moment("delay", delay)


def check_chunk(chunk: int) -> None:
    """Raise ValueError for what can't be how many items a message carries."""
    if type(chunk) is not int or not 1 <= chunk <= writes.WINDOW:
        raise ValueError(f"chunk must be a whole number from 1 to {writes.WINDOW}, not {chunk!r}")


def take_in(intake: "Intake", items: Iterable[Any]) -> Job:
    """Store all of the items, chunk by chunk, from where the submission stands; returns the job, sealed."""
    with intake.recorder.submitting.held(intake.job.id):
        try:
            source = iter(items)
            intake.pass_over(source)
            while intake.open_ and (some := list(islice(source, CHUNK))):
                intake.store(some)
            return intake.seal()
        except BaseException as error:
            intake.broke_off(error)
            raise


async def asubmit(
    actor: dramatiq.Actor[..., Any] | str, items: Iterable[Any] | AsyncIterable[Any], **options: Any
) -> Job:
    """As `submit`, without blocking the event loop; `items` may be an async iterable too."""
    if not isinstance(items, AsyncIterable):
        return await asyncio.to_thread(submit, actor, items, **options)
    waiting: queue.Queue[Any] = queue.Queue(maxsize=2)
    storing = asyncio.create_task(asyncio.to_thread(submit, actor, _handed_over(waiting), **options))
    try:
        async for chunk in _chunks(items):
            await _hand_over(waiting, chunk, storing)
            if storing.done():  # there is no more to read for: a bad item, or a job that has them all
                return await storing
        await _hand_over(waiting, None, storing)
    except BaseException as error:
        await _hand_over(waiting, error, storing)
        await asyncio.gather(storing, return_exceptions=True)
        raise
    return await storing


async def _chunks(items: AsyncIterable[Any]) -> AsyncIterator[list[Any]]:
    chunk = []
    async for item in items:
        chunk.append(item)
        if len(chunk) == MANY:
            yield chunk
            chunk = []
    yield chunk


async def _hand_over(waiting: "queue.Queue[Any]", what: Any, storing: "asyncio.Task[Job]") -> None:
    while not storing.done():
        try:
            waiting.put_nowait(what)
        except queue.Full:
            await asyncio.sleep(0.005)
        else:
            return


def _handed_over(waiting: "queue.Queue[Any]") -> Iterator[Any]:
    while (what := waiting.get()) is not None:
        if isinstance(what, BaseException):
            raise what
        yield from what


@dataclass(slots=True)
class Intake:
    """A submission at work: where it stands, and how items become rows."""

    recorder: Recorder
    job: Job
    actor: str
    key: str | None
    item_key: ItemKey
    consumed: int
    open_: bool

    @classmethod
    def open(
        cls, broker: dramatiq.Broker, actor: dramatiq.Actor[..., Any] | str, name: str | None, key: str | None,
        item_key: ItemKey, metadata: dict[str, Any] | None, tenant: str | None, limits: Limits, targets: Targets,
        created_by: str | None, chunk: int,
    ) -> "Intake":  # fmt: skip
        """Make the job, or find the one with this key."""
        recorder = recorder_of(broker)
        actor_name, queue_name = addressee.resolve(recorder, broker, actor)
        made = recorder.write(
            lambda conn: writes.create_job(
                conn, name=name or actor_name, key=key, tenant=tenant or "", actor=actor_name, queue=queue_name,
                metadata=metadata or {}, created_by=created_by, limits=limits, targets=targets, chunk=chunk,
            )
        )  # fmt: skip
        if made.actor != actor_name:
            raise ValueError(
                f"the job with the key {key!r} is one of the actor {made.actor!r}, not {actor_name!r}"
            )
        open_ = not made.sealed and made.state not in JOB_FINAL
        return cls(recorder, Job(made.job, recorder), actor_name, key, item_key, made.consumed, open_)

    def pass_over(self, source: Iterator[Any]) -> None:
        """Go past the inputs that are stored already."""
        if self.open_:
            next(islice(source, self.consumed, self.consumed), None)

    def store(self, chunk: Sequence[Any]) -> None:
        """Store a chunk, all of it or nothing; the job starts with its first."""
        rows = [inputs.row(self.consumed + n, item, self.item_key) for n, item in enumerate(chunk)]
        how, number = self.recorder.write(
            lambda conn: writes.store_chunk(
                conn, self.job.id, self.consumed, rows, keyed=self.item_key is not None
            )
        )
        if how != "stored":
            raise SubmittedElsewhere(
                f"job {self.job.id} was {how} at input {number}, and this submission had {self.consumed}"
            )
        first = self.consumed == 0
        self.consumed += len(chunk)
        if len(chunk) >= MANY:
            self._tell_planner()
        if first:
            self.recorder.begin(self.job.id)

    def _tell_planner(self) -> None:
        """Before workers meet what was stored. It is stored in any case, and the sweep tells, too."""
        try:
            self.recorder.write(writes.analyze_grown)
        except (psycopg.Error, PoolTimeout):
            log.debug("the planner wasn't told what is stored", exc_info=True)

    def seal(self) -> Job:
        """No more items come; the job completes when its last is done."""
        if self.open_:
            sealed = self.recorder.write(lambda conn: writes.seal_job(conn, self.job.id))
            if (
                not sealed and self.key is None
            ):  # with a key another may have sealed it, with all of its items
                raise SubmittedElsewhere(f"job {self.job.id} was stopped before its submission was done")
            self.recorder.begin(self.job.id)
        return self.job

    def broke_off(self, error: BaseException) -> None:
        """Stop a job that nobody can take up again; one with a key stays open."""
        if self.key is not None or not self.open_:
            return
        reason = clean(f"its submission broke off at input {self.consumed}: {type(error).__name__}: {error}")
        try:
            self.recorder.write(lambda conn: writes.break_job(conn, self.job.id, reason))
        except Exception:
            log.exception("job %d can't be marked as broken off", self.job.id)
