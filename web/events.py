"""Server-sent events: a job, or a page of jobs, and then each of its changes.

One task per event loop reads each watched topic, however many watchers it has. A change is encoded once. A slow watcher
gets only the latest change.
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

#: Seconds between two reads of the topics; and seconds without news after which `alive` is sent. By `alive` both ends
#: #: notice a broken connection, and a browser notices a proxy that buffers.
LOOK_SECONDS, ALIVE_SECONDS = 0.5, 15.0
#: Seconds between two checks of a watcher's login.
LOGIN_SECONDS = 60.0
#: Maximum age in seconds of the first event of a new watcher.
FRESH_SECONDS = 1.0
#: Jobs that one query reads, and watchers that are woken, before the event loop runs other tasks.
JOBS_AT_ONCE, WATCHERS_AT_ONCE = 50, 10

TYPES = ("text/event-stream",)
START = b"retry: 2000\n\n"
HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}  # no proxy buffers or compresses


def _event(name: str, data: bytes, tag: str = "") -> bytes:
    mark = f"id: {tag}\n".encode() if tag else b""
    return mark + f"event: {name}\ndata: ".encode() + data + b"\n\n"


#: The event of a stream without news.
ALIVE = _event("alive", b"{}")
#: The last event for a watcher whose login is no longer valid.
LOGIN_ENDED = _event("problem", bytes(Problem(401, access.LOGIN_ENDED).body))


class Topic:
    """A watched job or list: the first event of a new watcher, the event of the latest change, and the watchers."""

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
        """Return the next event for a watcher that has seen version `seen`; 0: it has seen none."""
        if not seen:
            return self.whole + self.problem
        return self.problem or (self.change if self.version == seen + 1 else self.resync())

    def resync(self) -> bytes:
        """Return the event for a watcher that has missed changes."""
        return self.whole

    def describe(self, found: Any) -> None:
        """Encode the result of the query."""
        raise NotImplementedError

    async def update(self, found: Any) -> None:
        """Store a new result of the query, and wake the watchers if it differs from the last one."""
        self.read_at = time.monotonic()
        if self.problem or not self.version or found != self.found:
            self.describe(found)
            if self.problem:
                self.change, self.problem = self.whole, b""
            self.found = found
            await self._announce()

    async def fail(self, problem: bytes) -> None:
        """Store the problem of a failed read, and wake the watchers if it is a new one."""
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
        """Encode the job, and the end of the stream if the job ended or is deleted."""
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
    """A page of jobs. In each event `order` has the ids of the page, and `jobs` the changed rows, or all rows."""

    def describe(self, found: Page) -> None:
        """Encode the page, and its changes."""
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
        """Return the event with the whole page."""
        return self.whole.replace(b"event: jobs\n", b"event: resync\n", 1)


class Events:
    """The topics of one event loop, and the task that reads them while they have watchers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._topics: WeakValueDictionary[Hashable, Topic] = WeakValueDictionary()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def watchers(self) -> int:
        """The number of watchers."""
        return sum(len(topic.watchers) for topic in self._topics.values())

    async def topic(self, key: Hashable, new: Topic) -> Topic:
        """Return the topic with this key, or else `new`, read within the last second. Raises as its query does."""
        topic = self._topics.setdefault(key, new)
        async with topic.loading:
            if time.monotonic() - topic.read_at > FRESH_SECONDS:
                await topic.update(await self._database.read(topic.query))
        return topic

    async def stream(self, request: Request, topic: Topic, known: str | None) -> AsyncGenerator[bytes]:
        """Yield the events for one watcher. `known`: the tag of the version that it already has, or None."""
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
                    with suppress(psycopg.OperationalError):  # the login may use a database, too
                        if not await access.is_still_admitted(request):
                            yield LOGIN_ENDED
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
            await asyncio.sleep(max(LOOK_SECONDS - took, took))  # reading takes at most half of the time

    async def _look(self, watched: Sequence[Topic]) -> None:
        jobs = [topic for topic in watched if isinstance(topic, JobTopic)]
        parts: list[list[Any]] = [jobs[at : at + JOBS_AT_ONCE] for at in range(0, len(jobs), JOBS_AT_ONCE)]
        parts += [[topic] for topic in watched if not isinstance(topic, JobTopic)]
        for part in parts:
            try:
                await self._read(part)
            except Exception as error:  # noqa: BLE001 - the watchers get it
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
        return Response(status_code=204)  # else a browser would reconnect forever
    if call.request.method == "HEAD":
        return Response(media_type=TYPES[0], headers=HEADERS)
    stream = _events(call).stream(call.request, topic, known)
    return StreamingResponse(stream, media_type=TYPES[0], headers=HEADERS)


def _events(call: Call[Any, Any]) -> Events:
    state, loop = call.request.app.state, asyncio.get_running_loop()
    events: Events = state.events.setdefault(loop, Events(state.database))
    return events


def _with_order(body: bytes, order: bytes) -> bytes:
    """Return the page of jobs with the ids of the page added."""
    return b'{"order":' + order + b"," + body[1:]


async def _problem(error: Exception) -> bytes:
    """Return the event with the API's answer to this error."""
    if not isinstance(error, HANDLED):
        log.error("can't read the watched jobs", exc_info=error)
    return _event("problem", bytes((await problem_of(None, error)).body))


def _server_stops() -> bool:
    """Return whether uvicorn was asked to stop. It waits for open answers, and informs an app only after they end."""
    handler = signal.getsignal(signal.SIGTERM)
    return getattr(getattr(handler, "__self__", None), "should_exit", False) is True
