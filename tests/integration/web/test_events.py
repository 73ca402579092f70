"""Server-sent events on a real database and a real server: what watchers get, when, and at what cost."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from callboard import Identity
from callboard.commands.services import Server
from callboard.sql.migrate import migrate
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.reads.job_filter import JobFilter
from callboard.sql.reads.queries import Query
from callboard.sql.writes import actions, tokens
from callboard.sql.writes.requests import Requester
from callboard.web import create_app, events
from callboard.web.database import Database
from callboard.web.events import JobTopic, ListTopic
from tests.support.databases import database, with_database
from tests.support.jobs import cancel, make_job, make_staged, record
from tests.support.timer import Timer
from tests.support.webapp import TYPE, followed, open_app, served, started
from tests.support.webapp import events as parsed
from tests.support.workers import wait_until

#: Seconds from a change to a watcher at most.
SOON = 1.0
#: Milliseconds that a request waits for its turn at most, at 99 of 100 moments.
MOST_LAG_MS = 50.0


@pytest.fixture(scope="module")
def url(postgres_url: str, template: str) -> Iterator[str]:
    """The database that the tests here share."""
    with database(postgres_url, template) as name:
        yield with_database(postgres_url, name)


@pytest.fixture
def conn(url: str) -> Iterator[Conn]:
    with connect(url) as connection:
        yield connection


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[str]:
    """The API of an app that is mounted in another, whose lifespan does not run this one's."""
    app = open_app(url)
    with served(Starlette(routes=[Mount("/in", app)])) as address:
        yield f"{address}/in/api/v1"
        assert wait_until(lambda: not watched(app), 300), "somebody is still taken for a watcher"


def watched(app: Starlette) -> int:
    """How many watch."""
    hubs = list(app.state.events.values())
    return sum(hub.watchers for hub in hubs)


def test_a_job_is_followed_to_its_end(conn: Conn, api: str) -> None:
    job = make_job(conn, 3, published=0)
    path = f"{api}/jobs/{job}"
    with followed(f"{path}/events") as stream:
        first = next(stream)
        read = httpx.get(path)
        assert (first.name, first.data, first.id) == ("job", read.json(), read.headers["etag"])
        record(conn, job, {"succeeded": [0]})
        changed = Timer()
        second = next(stream)
        assert changed.seconds < SOON
        assert (second.name, second.data["succeeded"]) == ("job", 1)
        record(conn, job, {"succeeded": [1], "failed": [2]})
        *_, last, end = stream
    assert (last.name, last.data["state"], last.data["failed"]) == ("job", "completed", 1)
    assert (end.name, end.data) == ("end", {"id": job, "state": "completed"})
    again = httpx.get(f"{path}/events", headers={"Last-Event-ID": str(last.id)})
    assert (again.status_code, again.content) == (204, b"")
    with followed(f"{path}/events", headers={"Last-Event-ID": str(second.id)}) as stream:
        assert [event.name for event in stream] == ["job", "end"]


def test_what_a_watcher_has_is_not_sent_again(conn: Conn, api: str) -> None:
    job = make_job(conn, 2, published=0)
    tag = httpx.get(f"{api}/jobs/{job}").headers["etag"]
    with followed(f"{api}/jobs/{job}/events", headers={"Last-Event-ID": tag}) as stream:
        record(conn, job, {"succeeded": [0]})
        assert next(stream).data["succeeded"] == 1


def test_a_job_of_stages_is_followed(conn: Conn, api: str) -> None:
    parent, [_, second] = make_staged(conn)
    with followed(f"{api}/jobs/{parent}/events") as whole, followed(f"{api}/jobs/{second}/events") as part:
        assert [stage["job"] for stage in next(whole).data["stages"]][1] == second
        assert next(part).data["succeeded"] == 1
        record(conn, second, {"succeeded": [1]})
        assert next(whole).data["stages"][1]["succeeded"] == next(part).data["succeeded"] == 2


def test_a_list_is_followed_by_its_changes(conn: Conn, api: str) -> None:
    kept, moved = (make_job(conn, 2, actor="listed", published=0) for _ in range(2))
    query = "events?actor=listed&limit=2"
    with followed(f"{api}/{query}") as stream:
        first = next(stream)
        assert (first.name, first.data["order"], first.data["next"]) == ("jobs", [moved, kept], None)
        assert [row["id"] for row in first.data["jobs"]] == [moved, kept]
        assert first.id == httpx.get(f"{api}/jobs?actor=listed&limit=2").headers["etag"]
        record(conn, moved, {"succeeded": [0]})
        second = next(stream)
        assert [(row["id"], row["succeeded"]) for row in second.data["jobs"]] == [(moved, 1)]
        make_job(conn, 1, actor="other", published=0)
        new = make_job(conn, 1, actor="listed", published=0)
        third = next(stream)
        assert (third.data["order"], third.data["next"]) == ([new, moved], f"jobs-{moved}")
        assert new in [row["id"] for row in third.data["jobs"]]


def test_a_job_that_is_deleted_is_gone(conn: Conn, api: str) -> None:
    job = make_job(conn, 1, published=0)
    with followed(f"{api}/jobs/{job}/events") as stream:
        next(stream)
        # At once, so that no look can fall between them: the end of a job ends its stream.
        with conn.transaction():
            cancel(conn, job)
            conn.execute("UPDATE callboard.jobs SET deleted_at = now() WHERE id = %s", (job,))
        assert [(event.name, event.data) for event in stream] == [("gone", {"id": job})]
    assert httpx.get(f"{api}/jobs/{job}/events").status_code == 404


def test_a_slow_watcher_gets_only_the_latest(conn: Conn, url: str) -> None:
    job, other = (make_job(conn, 3, actor="slow", published=0) for _ in range(2))
    database = Database(url)
    page, one = ListTopic(queries.jobs(JobFilter(actor="slow"))), JobTopic(job)

    async def slowly() -> list[bytes]:
        hub, request = events.Events(database), Request({"type": "http"})
        streams = [hub.stream(request, await hub.topic(str(topic), topic), None) for topic in (page, one)]
        got = [await anext(stream) for stream in streams * 2]
        for item in range(3):
            await asyncio.to_thread(record, conn, job, {"succeeded": [item]})
            for topic in (page, one):
                await topic.update(await database.read(topic.query))
        got += [await anext(stream) for stream in streams]
        for stream in streams:
            await stream.aclose()
        await database.close()
        return got

    *starts, first, _, late, latest = asyncio.run(slowly())
    assert starts == [events.START] * 2
    assert b"event: jobs\n" in first
    [resync], [job_, end] = ([*parsed(iter(text.decode().splitlines()))] for text in (late, latest))
    assert (resync.name, resync.data["order"]) == ("resync", [other, job])
    assert [row["succeeded"] for row in resync.data["jobs"]] == [0, 3]
    assert (job_.name, job_.data["succeeded"], end.name) == ("job", 3, "end")
    assert not page.watchers


def test_what_can_not_be_followed_is_refused_as_anywhere(api: str) -> None:
    for path, status in (("jobs/999999/events", 404), ("events?state=x", 400), ("events?after=x", 400)):
        answer = httpx.get(f"{api}/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_a_stream_is_neither_packed_nor_kept_by_a_proxy(conn: Conn, api: str) -> None:
    path = f"{api}/jobs/{make_job(conn, 1, published=0)}/events"
    with httpx.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
        assert next(answer.iter_lines()) == "retry: 2000"
        headers = answer.headers
    assert "content-encoding" not in headers
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store, no-transform", "no")
    head = httpx.head(path)
    assert (head.status_code, head.headers["content-type"], head.content) == (200, TYPE, b"")


def test_a_tenant_follows_its_own_jobs_only(conn: Conn, url: str) -> None:
    own, other = (make_job(conn, 2, tenant=tenant, actor="rented", published=0) for tenant in ("acme", "globex"))
    with served(create_app(url=url, authenticate=lambda _: Identity("anna", tenant="acme"))) as address:
        api = f"{address}/api/v1"
        assert httpx.get(f"{api}/jobs/{other}/events").status_code == 404
        with followed(f"{api}/events?actor=rented") as all_, followed(f"{api}/events?tenant=globex") as none:
            assert (next(all_).data["order"], next(none).data["order"]) == ([own], [])
            record(conn, other, {"succeeded": [0]})
            record(conn, own, {"succeeded": [0]})
            assert [row["id"] for row in next(all_).data["jobs"]] == [own]


def test_a_stream_ends_when_the_login_does_not_let_its_watcher_in_any_more(
    conn: Conn, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOGIN_SECONDS", 0.2)
    monkeypatch.setattr(events, "ALIVE_SECONDS", 0.1)
    let_in, refused = [Identity("anna")], 0

    async def login(_request: Request) -> Identity | None:
        nonlocal refused
        refused += not let_in
        return let_in[0] if let_in else None

    with served(create_app(url=url, authenticate=login)) as address:
        path = f"{address}/api/v1/jobs/{make_job(conn, 1, published=0)}/events"
        with httpx.stream("GET", path) as answer:
            lines = answer.iter_lines()
            alive = (line for line in lines if line == "data: {}")
            for _ in range(5):
                next(alive)
            let_in.clear()
            *_, last = parsed(lines)
        assert (last.name, last.data["status"], last.data["code"]) == ("problem", 401, "no_login")
        assert "this login is no longer valid" in last.data["detail"]
        assert refused == 1
        assert httpx.get(path).status_code == 401


def test_a_database_that_is_away_is_told_and_the_stream_goes_on(private_server: Server) -> None:
    migrate(private_server.url)
    with connect(private_server.url) as conn:
        job = make_job(conn, 2, published=0)
    with served(open_app(private_server.url)) as address:
        paths = [f"{address}/api/v1/{path}" for path in (f"jobs/{job}/events", "events")]
        with followed(paths[0]) as one, followed(paths[1]) as list_:
            assert (next(one).name, next(list_).name) == ("job", "jobs")
            private_server.kill()
            for stream in (one, list_):
                problem = next(stream)
                assert (problem.name, problem.data["code"]) == ("problem", "unavailable")
            with httpx.stream("GET", paths[0]) as answer:  # what is a second old at most may still be sent
                assert answer.status_code in (200, 503)
            private_server.start()
            assert (next(one).data["succeeded"], next(list_).data["order"]) == (0, [job])
            with connect(private_server.url) as conn:
                record(conn, job, {"succeeded": [0]})
            assert next(one).data["succeeded"] == 1


def test_a_server_that_stops_ends_its_streams(url: str, conn: Conn, tmp_path: Path) -> None:
    job = make_job(conn, 1, actor="stops", published=0)
    actions.pause(conn, job, Requester("cli", "anna"))  # else it would stand still in some seconds, which is an event
    secret, _ = tokens.create(conn, Requester("cli", "anna"), name="ci")
    login = {"Authorization": f"Bearer {secret}"}
    with (
        started("callboard.web:app", url, tmp_path / "log") as (server, address),
        followed(f"{address}/api/v1/jobs/{job}/events", headers=login) as one,
        followed(f"{address}/api/v1/events?actor=stops", headers=login) as all_,
    ):
        next(one)
        next(all_)
        server.terminate()
        assert [*one, *all_] == []


# Cost ----------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watchers(address: str, paths: list[str]) -> AsyncIterator[list[AsyncIterator[str]]]:
    """Watch all of these; each has had its first event."""
    limits = httpx.Limits(max_connections=None)
    async with AsyncExitStack() as stack, httpx.AsyncClient(base_url=address, limits=limits, timeout=300) as client:
        opened = await asyncio.gather(*(stack.enter_async_context(client.stream("GET", path)) for path in paths))
        streams = [data(answer) for answer in opened]
        await asyncio.gather(*(anext(stream) for stream in streams))
        yield streams


async def data(answer: httpx.Response) -> AsyncIterator[str]:
    """The data of each event."""
    assert answer.status_code == 200
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def test_all_watchers_share_one_reader(url: str, conn: Conn) -> None:
    watched_jobs = [make_job(conn, 200, actor=f"shared{number}", published=0) for number in range(2)]
    app = open_app(url)
    reads: list[Query[Any]] = []
    read = app.state.database.read

    async def counted(query: Query[Any]) -> Any:
        reads.append(query)
        return await read(query)

    app.state.database.read = counted
    paths = [f"/api/v1/jobs/{job}/events" for job in watched_jobs] * 20
    paths += ["/api/v1/events?actor=shared0", "/api/v1/events?actor=shared1"] * 5

    async def watch(address: str) -> int:
        async with watchers(address, paths) as streams:
            (hub,) = app.state.events.values()
            began, rounds = len(reads), 6
            for item in range(rounds):
                for job in watched_jobs:
                    await asyncio.to_thread(record, conn, job, {"succeeded": [item]})
                seen = [json.loads(await anext(stream)) for stream in streams]
                counts = [row["succeeded"] for row in (one for one in seen if "id" in one)]
                assert len(counts) == 40
            assert not hub._task.done()
            looked = len(reads) - began
            assert sum(len(topic.watchers) for topic in hub._topics.values()) == len(paths)
        return looked

    with served(app) as address:
        began = time.monotonic()
        looked = asyncio.run(watch(address))
        looks = (time.monotonic() - began) / events.LOOK_SECONDS + 1
        assert looked <= 3 * looks, "one for all jobs, and one for each list"
        assert wait_until(lambda: not watched(app), 300)
        (hub,) = app.state.events.values()
        assert wait_until(hub._task.done, 300), "nobody watches, and it still reads"


def test_nothing_blocks_the_event_loop(url: str, conn: Conn, tmp_path: Path) -> None:
    """With 100 watchers, while jobs change and are read in the largest pages."""
    numbers = [make_job(conn, 1_000, actor=f"busy{number % 9}", published=0) for number in range(60)]
    streams = [f"/api/v1/jobs/{number}/events" for number in numbers]
    streams += [f"/api/v1/events?actor=busy{number % 9}" for number in range(40)]
    reads = ["/api/v1/jobs?limit=500", f"/api/v1/jobs/{numbers[0]}", f"/api/v1/jobs/{numbers[0]}/items?limit=500"]

    async def load(address: str) -> float:
        async with watchers(address, streams), httpx.AsyncClient(base_url=address, timeout=300) as client:
            await client.get("/lag")
            for item in range(8):
                await asyncio.to_thread(record, conn, numbers[item], {"succeeded": range(20)})
                for answer in await asyncio.gather(*(client.get(path) for path in reads * 2)):
                    answer.raise_for_status()
            return float((await client.get("/lag")).json()["p99"])

    with started("tests.support.lag_app:app", url, tmp_path / "log") as (_, address):
        lags = (asyncio.run(load(address)) for _ in range(3))  # of a machine that does other things, too
        assert any(lag <= MOST_LAG_MS for lag in lags)
        for _ in range(3):
            httpx.get(f"{address}/block")
        assert httpx.get(f"{address}/lag").json()["p99"] > MOST_LAG_MS, "it would not show"
