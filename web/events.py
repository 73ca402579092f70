"""Server-sent events: a job, or a page of jobs, and then each change of it.

One task of an event loop reads what is watched there, however many watch it. A change is encoded once, and a watcher
that is behind gets only the latest.
"""

import asyncio
import itertools
import logging
import signal
import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import psycopg
from psycopg_pool import PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from callboard.sql.reads import queries
from callboard.sql.reads.item_view import Page
from callboard.sql.reads.queries import Query
from callboard.sql.states import JOB_FINAL
from callboard.web import access, answers, parameters
from callboard.web import jobs as listings
from callboard.web.database import Database
from callboard.web.endpoint import Call, NoBody, etag
from callboard.web.jobs import JobQuery
from callboard.web.parameters import NoQuery
from callboard.web.problems import HANDLED, Problem, encode, problem_of

log = logging.getLogger("callboard.web")

#: Seconds between two looks at what is watched, and without news until an event says that the connection lives: by it
#: both ends see one that is lost, and a browser one that a proxy keeps.
LOOK_SECONDS, ALIVE_SECONDS = 0.5, 15.0
#: Seconds between two questions to the login whether a watcher may go on.
LOGIN_SECONDS = 60.0
#: The age in seconds of what a new watcher gets first, at most.
FRESH_SECONDS = 1.0
#: Jobs that one query reads, and watchers that are woken, before other requests have their turn.
JOBS_AT_ONCE, WATCHERS_AT_ONCE = 50, 10

TYPES = ("text/event-stream",)
START = b"retry: 2000\n\n"
HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}  # a proxy keeps and packs nothing


def _event(name: str, data: bytes, tag: str = "") -> bytes:
    mark = f"id: {tag}\n".encode() if tag else b""
    return mark + f"event: {name}\ndata: ".encode() + data + b"\n\n"


#: The event of a stream without news.
ALIVE = _event("alive", b"{}")
#: The last event for a watcher whom the login does not let in any more.
NOT_ANY_MORE = _event("problem", bytes(Problem(401, access.NOT_ANY_MORE).body))


class Topic:
    """Something that is watched: what a watcher gets first, what it gets at the latest change, and who watches."""

    def __init__(self, query: Query[Any]) -> None:
        self.query = query
        self.found: Any = None
        self.tag = ""
        self.version = 0
        self.whole = self.change = self.problem = b""
        self.over = False
        self.read_at = -FRESH_SECONDS
        self.loading = asyncio.Lock()
        self.watchers: set[asyncio.Event] = set()

    def event(self, seen: int) -> bytes:
        """Return the event for a watcher that has seen this version; 0: none."""
        if not seen:
            return self.whole + self.problem
        return self.problem or (self.change if self.version == seen + 1 else self.resync())

    def resync(self) -> bytes:
        """Return the event for a watcher that has missed a change."""
        return self.whole

    def describe(self, found: Any) -> None:
        """Encode what was read."""
        raise NotImplementedError

    async def update(self, found: Any) -> None:
        """Take what was read just now, and wake the watchers if it differs."""
        self.read_at = time.monotonic()
        if self.problem or not self.version or found != self.found:
            self.describe(found)
            if self.problem:
                self.change, self.problem = self.whole, b""
            self.found = found
            await self._announce()

    async def fail(self, problem: bytes) -> None:
        """Take the problem that kept it from being read, and wake the watchers if it is another one."""
        if problem != self.problem:
            self.problem = problem
            await self._announce()

    async def _announce(self) -> None:
        self.version += 1
        for number, watcher in enumerate(tuple(self.watchers), 1):
            watcher.set()
            if not number % WATCHERS_AT_ONCE:
                await asyncio.sleep(0)


class JobTopic(Topic):
    """A job, until its end."""

    def __init__(self, number: int) -> None:
        super().__init__(queries.job(number))
        self.number = number

    def describe(self, found: dict[str, Any] | None) -> None:
        """Encode the job, and its end."""
        self.over = found is None or found["state"] in JOB_FINAL
        if found is None:
            self.tag, self.whole = "", _event("gone", encode({"id": self.number}))
        else:
            body = encode(msgspec.convert(found, answers.Job))
            self.tag = etag(body)
            self.whole = _event("job", body, self.tag)
            if self.over:
                self.whole += _event("end", encode({"id": self.number, "state": found["state"]}))
        self.change = self.whole


class ListTopic(Topic):
    """A page of jobs: `order` of each event has the ids of the page, `jobs` the rows that changed, or all of them."""

    def describe(self, found: Page) -> None:
        """Encode the page, and what changed on it."""
        rows, following = found
        known = {row["id"]: row for row in self.found[0]} if self.found else {}
        changed = [row for row in rows if known.get(row["id"]) != row]
        page = {"jobs": rows, "next": parameters.next_page(following, "jobs")}
        order = encode([row["id"] for row in rows])
        body = encode(msgspec.convert(page, answers.Jobs))
        self.tag = etag(body)
        self.whole = _event("jobs", _with_order(body, order), self.tag)
        part = encode(msgspec.convert({**page, "jobs": changed}, answers.Jobs))
        self.change = _event("jobs", _with_order(part, order), self.tag)

    def resync(self) -> bytes:
        """The whole page."""
        return self.whole.replace(b"event: jobs\n", b"event: resync\n", 1)


class Events:
    """The topics of one event loop, and the task that reads them while somebody watches."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._topics: WeakValueDictionary[Hashable, Topic] = WeakValueDictionary()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def watchers(self) -> int:
        """How many watch."""
        return sum(len(topic.watchers) for topic in self._topics.values())

    async def topic(self, key: Hashable, new: Topic) -> Topic:
        """Return the topic of this key, read a second ago at most; `new` if there is none. Raises as its query does."""
        topic = self._topics.setdefault(key, new)
        async with topic.loading:
            if time.monotonic() - topic.read_at > FRESH_SECONDS:
                await topic.update(await self._database.read(topic.query))
        return topic

    async def stream(self, request: Request, topic: Topic, known: str | None) -> AsyncGenerator[bytes]:
        """Yield the events for one watcher, who has the version with the tag `known` already."""
        news, asked_at = asyncio.Event(), time.monotonic()
        topic.watchers.add(news)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_again_and_again())
        try:
            yield START
            seen = topic.version if known == topic.tag and not topic.problem else 0
            while topic.version != seen or not (topic.over or self._stopping):
                news.clear()
                if topic.version != seen:
                    event, seen = topic.event(seen), topic.version
                    yield event
                    continue
                try:
                    async with asyncio.timeout(ALIVE_SECONDS):
                        await news.wait()
                except TimeoutError:
                    yield ALIVE
                if time.monotonic() - asked_at > LOGIN_SECONDS:
                    asked_at = time.monotonic()
                    with suppress(psycopg.OperationalError):  # the login may ask a database, too
                        if not await access.is_still_admitted(request):
                            yield NOT_ANY_MORE
                            return
        finally:
            topic.watchers.discard(news)

    async def _look_again_and_again(self) -> None:
        while watched := [topic for topic in self._topics.values() if topic.watchers]:
            if _server_stops():
                self._stopping = True
                for watcher in itertools.chain.from_iterable(topic.watchers for topic in watched):
                    watcher.set()
                return
            began = time.monotonic()
            await self._look([topic for topic in watched if not topic.over])
            took = time.monotonic() - began
            await asyncio.sleep(max(LOOK_SECONDS - took, took))  # to look must not take more than half of the time

    async def _look(self, watched: Sequence[Topic]) -> None:
        jobs = [topic for topic in watched if isinstance(topic, JobTopic)]
        parts: list[list[Any]] = [jobs[at : at + JOBS_AT_ONCE] for at in range(0, len(jobs), JOBS_AT_ONCE)]
        parts += [[topic] for topic in watched if not isinstance(topic, JobTopic)]
        for part in parts:
            try:
                await self._read(part)
            except Exception as error:  # noqa: BLE001 - the watchers learn of it
                problem = await _problem(error)
                away = isinstance(error, PoolTimeout)
                for topic in watched if away else part:
                    await topic.fail(problem)
                if away:
                    return

    async def _read(self, part: Sequence[Topic]) -> None:
        """Read some jobs, or one list."""
        numbers = [topic.number for topic in part if isinstance(topic, JobTopic)]
        if not numbers:
            await part[0].update(await self._database.read(part[0].query))
            return
        found = await self._database.read(queries.jobs_by_id(numbers))
        for topic, number in zip(part, numbers, strict=True):
            await topic.update(found.get(number))


async def job(call: Call[NoQuery, NoBody]) -> Response:
    """Follow a job: an event `job` now and at each change, `end` after the last one, `gone` when it is deleted."""
    topic = await _events(call).topic(call.job, JobTopic(call.job))
    if topic.found is None:
        raise HTTPException(404, f"there is no job {call.job}")
    return _answer(call, topic)


async def jobs(call: Call[JobQuery, NoBody]) -> Response:
    """Follow a page of jobs: an event `jobs` now and at each change, or `resync` for a watcher that missed one."""
    query = listings.listing(call)
    return _answer(call, await _events(call).topic((query.name, repr(query.parameters)), ListTopic(query)))


def _answer(call: Call[Any, NoBody], topic: Topic) -> Response:
    known = call.request.headers.get("last-event-id")
    if topic.over and known == topic.tag:
        return Response(status_code=204)  # else a browser would connect again for ever
    if call.request.method == "HEAD":
        return Response(media_type=TYPES[0], headers=HEADERS)
    stream = _events(call).stream(call.request, topic, known)
    return StreamingResponse(stream, media_type=TYPES[0], headers=HEADERS)


def _events(call: Call[Any, Any]) -> Events:
    state, loop = call.request.app.state, asyncio.get_running_loop()
    events: Events = state.events.setdefault(loop, Events(state.database))
    return events


def _with_order(body: bytes, order: bytes) -> bytes:
    """A page of jobs with the ids of the page."""
    return b'{"order":' + order + b"," + body[1:]


async def _problem(error: Exception) -> bytes:
    """The event that tells what the API answers to this error."""
    if not isinstance(error, HANDLED):
        log.error("the watched jobs can't be read", exc_info=error)
    return _event("problem", bytes((await problem_of(None, error)).body))


def _server_stops() -> bool:
    """Whether uvicorn was asked to stop. It waits for open answers, and does not say it to an app before they end."""
    handler = signal.getsignal(signal.SIGTERM)
    return getattr(getattr(handler, "__self__", None), "should_exit", False) is True
