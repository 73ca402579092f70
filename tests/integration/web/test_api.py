"""The HTTP API on a real database: fields, statuses, prefixes, and answers while something is down."""

import asyncio
import logging
import math
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg_pool.base
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from callboard import Identity
from callboard.commands.services import Server
from callboard.middleware.process import outage
from callboard.middleware.rabbitmq import queue_admin
from callboard.sql import pool, timings
from callboard.sql.migrate import migrate
from callboard.sql.pool import AsyncConn, Conn, connect
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES
from callboard.web import create_app, database, health
from tests.support.jobs import MIXED, age, cancel, make_job, make_mixed_job, make_staged, record
from tests.support.webapp import get, open_app
from tests.support.workers import wait_until

JOB_FIELDS = """
id name key tenant actor state stopping reason standing sealed open consumed total pending queued running retrying
succeeded failed skipped cancelled retries crashes unkept progress rate eta stalled stalled_until step hung
stages parent stage limits metadata created_by created_at started_at finished_at updated_at
"""


def problem(answer: httpx.Response, status: int) -> str:
    """The detail of a problem, whose form is checked."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["type"]) == (status, "about:blank")
    detail: str = body["detail"]
    assert "Traceback" not in detail
    return detail


def test_a_job_has_the_fields_of_the_contract(conn: Conn, app: Starlette) -> None:
    job = make_mixed_job(conn)
    (answer,) = get(app, f"/api/jobs/{job}")
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == JOB_FIELDS.split()
    assert {state: body[state] for state in ITEM_STATES} == MIXED
    assert answer.headers["cache-control"] == "private, no-cache"


def test_an_answer_that_is_known_is_not_sent_again(conn: Conn, app: Starlette) -> None:
    """HTTP compares these tags without their W/, which a proxy may take away; `*` is any."""
    path = f"/api/v1/jobs/{make_job(conn, 1)}"
    (first,) = get(app, path)
    tag = first.headers["etag"]
    for known in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
        (again,) = get(app, path, headers={"If-None-Match": known})
        assert (known, again.status_code, again.content) == (known, 304, b"")
    assert get(app, path, headers={"If-None-Match": '"other"'})[0].status_code == 200


def test_a_job_that_runs_is_not_sent_again_until_it_moves(conn: Conn, app: Starlette) -> None:
    job = make_job(conn, 1_000)
    record(conn, job, {"succeeded": range(10)})
    # As if it had moved this moment, however long the readings take.
    moved = "updated_at = now() + interval '60 s', started_at = now() + interval '53 s'"
    conn.execute(f"UPDATE callboard.jobs SET {moved} WHERE id = %s".encode(), (job,))
    path = f"/api/v1/jobs/{job}"
    (first,) = get(app, path)
    assert (first.json()["rate"], first.json()["eta"][-5:]) == (1.43, ".000Z")
    headers = {"If-None-Match": first.headers["etag"]}
    assert [get(app, path, headers=headers)[0].status_code for _ in range(5)] == [304] * 5
    record(conn, job, {"succeeded": range(10, 20)})
    assert get(app, path, headers=headers)[0].status_code == 200


def test_a_long_answer_is_packed(conn: Conn, app: Starlette) -> None:
    path = f"/api/v1/jobs/{make_mixed_job(conn)}/items"
    plain, packed = (get(app, path, headers={"Accept-Encoding": how})[0] for how in ("identity", "gzip"))
    assert (packed.headers["content-encoding"], packed.json()) == ("gzip", plain.json())


def test_a_page_names_the_start_of_the_next(conn: Conn, app: Starlette) -> None:
    job = make_mixed_job(conn)
    make_job(conn, 1)
    jobs, items, errors, workers = get(
        app, "/api/jobs?limit=1", f"/api/jobs/{job}/items?limit=10&state=failed",
        f"/api/jobs/{job}/errors", "/api/workers",
    )  # fmt: skip
    assert len(jobs.json()["jobs"]) == 1
    assert jobs.headers["link"] == f'<?limit=1&after={jobs.json()["next"]}>; rel="next"'
    (rest,) = get(app, f"/api/jobs?limit=1&after={jobs.json()['next']}")
    assert "link" not in rest.headers
    assert [row["id"] for row in rest.json()["jobs"]] == [job]
    assert rest.json()["next"] is None
    assert [row["item"] for row in items.json()["items"]] == [20, 21, 22, 23, 24]
    assert [row["count"] for row in errors.json()["errors"]] == [8]
    assert [row["state"] for row in workers.json()["workers"]] == ["alive"]


def test_a_group_of_errors_leads_to_its_traceback_and_items(conn: Conn, app: Starlette) -> None:
    path = f"/api/jobs/{make_mixed_job(conn)}"
    [group] = get(app, f"{path}/errors")[0].json()["errors"]
    one, items, none, missing, strange = get(
        app, f"{path}/errors/{group['id']}", f"{path}/items?error={group['id']}&limit=2", f"{path}/items?key=none",
        f"{path}/errors/0", f"{path}/errors/%00",
    )  # fmt: skip
    assert one.json()["traceback"] == "Traceback …"
    assert ([item["item"] for item in items.json()["items"]], items.json()["next"]) == ([20, 21], "items-21")
    assert none.json() == {"items": [], "next": None}
    for answer in (missing, strange):
        assert problem(answer, 404).endswith("lists its groups")


def test_an_item_comes_with_its_attempts(conn: Conn, app: Starlette) -> None:
    job = make_mixed_job(conn)
    (answer,) = get(app, f"/api/jobs/{job}/items/20")
    assert answer.json()["state"] == "failed"
    assert [attempt["type"] for attempt in answer.json()["attempts"]] == ["ValueError"]


def test_a_result_that_strict_json_can_not_say_is_answered_as_text(conn: Conn, app: Starlette) -> None:
    job = make_job(conn, 3)
    record(conn, job, {"succeeded": [0]}, result='"\\ud800"')
    record(conn, job, {"succeeded": [1]}, result="NaN")
    record(conn, job, {"succeeded": [2]}, result="1e999")
    (answer,) = get(app, f"/api/jobs/{job}/items")
    items = answer.json()["items"]
    assert items[0]["result"] == "\ud800"
    assert [item["result"] for item in items[1:]] == [None, None]
    assert [item["result_text"] for item in items[1:]] == ["NaN", "1e999"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/jobs/1", "/api/jobs/x", "/api/jobs/-1", "/api/jobs/" + "9" * 5000, "/api/jobs/1/items",
        "/api/jobs/1/errors", "/api/jobs/1/items/0", "/api/jobs/1/items/99999999999", "/api/nothing",
        "/static/nothing.js", "/api/v1/jobs/", "/api/jobs/1/items/",
    ],
)  # fmt: skip
def test_a_missing_thing_is_a_404(app: Starlette, path: str) -> None:
    problem(get(app, path)[0], 404)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("limit=0", "limit"), ("limit=x", "limit"), ("limit=501", "limit"), ("limit=" + "9" * 5000, "limit"),
        ("after=-1", "after"), ("after=", "after"), ("after=items-5", "after"), ("after=jobs-" + "9" * 19, "after"),
        ("state=odd", "state must be one of cancelled, completed,"), ("name=%00", "name"), ("limit=%C2%B2", "limit"),
        ("standing=perhaps", "standing must be true or false"), ("odd=1", "odd is no parameter here; known are q, "),
        ("name=a&name=b", "name is given twice"), ("created_after=soon", "created_after must be a span before now"),
        ("q=state:odd", "q is invalid: state:odd is no word of a search; there are state:STATE, actor:"),
        ("q=actor:a&actor=b", "q is invalid: actor is given twice, as b and as a"),
        ("metadata=1", "metadata is no"),
        ("metadata.%00=1", "metadata. must not contain a NUL"), ("stalled=2", "stalled must be true or false"),
        ("q=" + "x" * 2001, "q is invalid: a search has 2000 characters at most"),
        ("name=" + "x" * 2001, "a search has 2000 characters at most"),
    ],
)  # fmt: skip
def test_a_bad_parameter_is_a_400_that_names_it(app: Starlette, query: str, names: str) -> None:
    assert problem(get(app, f"/api/jobs?{query}")[0], 400).startswith(names)


@pytest.mark.parametrize("query", ["created_after=", "q=since:"])
def test_a_time_whose_plus_was_read_as_a_blank_says_how_to_write_it(app: Starlette, query: str) -> None:
    ends = "; a + in a URL is written %2B"
    assert problem(get(app, f"/api/jobs?{query}2026-01-01T00:00:00+02:00")[0], 400).endswith(ends)
    assert not problem(get(app, f"/api/jobs?{query}soon")[0], 400).endswith(ends)


def test_jobs_are_found_by_parameters_and_by_the_words_of_a_search(conn: Conn, app: Starlette) -> None:
    one, two = make_job(conn, 1, name="autumn ads", actor="charge"), make_job(conn, 1, name="winter ads")
    stopped = make_job(conn, 1, tenant="acme")
    cancel(conn, stopped)
    for query, found in {
        "": [stopped, two, one], "state=running&state=pending": [two, one], "metadata.a=1&name=ADS": [two, one],
        "metadata.a=1&metadata.b=1": [], "q=autumn&actor=charge": [one], "q=%22autumn+ads%22+is:open": [one],
        "q=state:cancelled&state=pending": [], "tenant=acme&created_after=1h": [stopped],
        "created_before=2026-01-01": [], "failing=true": [], "key=": [stopped, two, one],
    }.items():  # fmt: skip
        (answer,) = get(app, f"/api/jobs?{query}")
        assert [job["id"] for job in answer.json()["jobs"]] == found, (query, answer.text)


def test_a_search_for_an_id_goes_to_the_page_of_the_job(conn: Conn, app: Starlette, database_url: str) -> None:
    job, other = make_job(conn, 1), make_job(conn, 1, tenant="acme")
    found = get(app, f"/?q={job}", f"/?q={job}&part=jobs", f"/?q=1{job}", "/?q=" + "9" * 30, "/?q=%C2%B2")
    assert [answer.status_code for answer in found] == [303, 200, 200, 200, 200]
    assert found[0].headers["location"] == f"jobs/{job}"
    theirs = create_app(url=database_url, authenticate=lambda _request: Identity("anna", "acme"))
    assert [answer.status_code for answer in get(theirs, f"/?q={job}", f"/?q={other}")] == [200, 303]


def test_each_view_has_its_exact_count(conn: Conn, app: Starlette, database_url: str) -> None:
    def seen_by(tenant: str) -> Starlette:
        return create_app(url=database_url, authenticate=lambda _request: Identity("anna", tenant))

    views = {
        "open": "is:open", "stalled": "is:stalled", "failed_today": "is:failing ended:24h", "ended": "is:ended",
        "all": "",
    }  # fmt: skip
    make_staged(conn)
    for tenant in ("", "acme"):
        for _ in range(2):
            failing = make_job(conn, 1, tenant=tenant)
            record(conn, failing, {"failed": [0]})
        age(conn, make_job(conn, 1, tenant=tenant), 60)
        cancel(conn, make_job(conn, 1, tenant=tenant))
    conn.execute("UPDATE callboard.jobs SET finished_at = now() - interval '25 h' WHERE id = %s", (failing,))
    for tenant, expected in {"": [3, 2, 3, 6, 9], "acme": [1, 1, 1, 3, 4], "other": [0] * 5}.items():
        (answer,) = get(seen_by(tenant) if tenant else app, "/api/jobs/counts")
        assert answer.json() == dict(zip(views, expected, strict=True))
        lists = get(app, *(f"/api/jobs?tenant={tenant}&q={words}" for words in views.values()))
        assert [len(one.json()["jobs"]) for one in lists] == expected


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/workers", "GET, HEAD"), ("/api/jobs", "GET, HEAD, POST"), ("/api/v1/jobs/1", "DELETE, GET, HEAD, PATCH"),
        ("/api/jobs/counts", "GET, HEAD"), ("/api/jobs/actions", "POST"), ("/tokens", "GET, HEAD, POST"),
    ],
)  # fmt: skip
def test_another_method_is_a_405_with_the_allowed_ones(app: Starlette, path: str, allowed: str) -> None:
    async def put() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.put(path)

    answer = asyncio.run(put())
    problem(answer, 405)
    assert answer.headers["allow"] == allowed


def test_the_app_works_under_any_prefix_without_its_lifespan(conn: Conn, app: Starlette) -> None:
    job = make_mixed_job(conn)
    outer = Starlette(routes=[Mount("/some/where", app)])
    paths = [f"/some/where{path}" for path in ("/", f"/jobs/{job}", "/static/page.js", f"/api/jobs/{job}", "/api/x")]
    answers = get(outer, *paths, lifespan=False)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 404]
    assert 'src="./static/page.js"' in answers[0].text
    assert 'src="../static/page.js"' in answers[1].text


def test_the_app_works_in_one_event_loop_after_another(conn: Conn, app: Starlette) -> None:
    for _ in range(2):
        assert get(app, "/api/jobs", lifespan=False)[0].status_code == 200


def test_the_event_loop_ends_while_the_database_is_away() -> None:
    (answer,) = get(open_app("postgresql://127.0.0.1:1/none"), "/api/jobs", lifespan=False)
    assert "PostgreSQL" in problem(answer, 503)


def test_many_requests_share_few_connections(conn: Conn, app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 60.0)  # until the first is read
    monkeypatch.setattr(database, "BUSY_SECONDS", 300.0)
    job = make_mixed_job(conn)
    answers = get(app, *[f"/api/jobs/{job}"] * 200)
    assert {answer.status_code for answer in answers} == {200}


def test_a_page_is_read_in_one_transaction_whatever_its_metadata_is_called(
    conn: Conn, app: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[AsyncConn]()

    async def begin(used: AsyncConn) -> None:
        begun.append(used)
        await pool.begin_read(used)

    monkeypatch.setattr(database, "begin_read", begin)
    job = make_mixed_job(conn)
    conn.execute('UPDATE callboard.jobs SET metadata = \'{"items": "i-1", "get": "g-1"}\' WHERE id = %s', (job,))
    for path in ("/", f"/jobs/{job}", f"/jobs/{job}/items/22"):
        (answer,) = get(app, path)
        assert answer.status_code == 200, answer.text
        assert len(begun) == 1, path
        begun.clear()
        if path == f"/jobs/{job}":
            assert (
                answer.text.count("i-1") + answer.text.count("g-1") == 4
            )  # in the table, and in the data of the scripts


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("/", "callboard submit ACTOR FILE"),
        ("/workers", "dramatiq callboard.actors your_module"),
        ("/queues", "dramatiq callboard.actors your_module"),
    ],
)
def test_an_empty_installation_says_how_to_begin(app: Starlette, path: str, command: str) -> None:
    assert f"<code>{command}</code>" in get(app, path)[0].text


def test_a_part_of_a_page_is_made_once_however_often_it_is_asked_for(app: Starlette) -> None:
    once, often = get(app, "/?part=jobs", "/?part=jobs" + "&part=jobs" * 50)
    assert once.text.count('id="jobs"') == 1
    assert often.text == once.text


def test_pages_allow_nothing_inline_and_nothing_from_elsewhere(app: Starlette) -> None:
    page, script = get(app, "/", "/static/page.js")
    for answer in (page, script):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<style" not in page.text
    assert "style=" not in page.text


async def only_anna(request: Request) -> Identity | None:
    """Lets one in."""
    return Identity("anna") if request.headers.get("authorization") == "Bearer anna" else None


def only_anna_in_a_thread(request: Request) -> Identity | None:
    """Likewise, as a plain function."""
    return Identity("anna") if request.headers.get("authorization") == "Bearer anna" else None


@pytest.mark.parametrize("authenticate", [only_anna, only_anna_in_a_thread, partial(only_anna)])
def test_a_request_without_a_login_is_a_401_and_probes_need_none(database_url: str, authenticate: Any) -> None:
    app = create_app(url=database_url, authenticate=authenticate)
    outer = Starlette(routes=[Mount("/in", app)])
    for one, prefix in ((app, ""), (outer, "/in")):
        page, jobs, health = get(one, f"{prefix}/", f"{prefix}/api/jobs", f"{prefix}/healthz", lifespan=False)
        problem(page, 401)
        problem(jobs, 401)
        assert jobs.headers["www-authenticate"] == "Bearer"
        assert health.status_code == 200
        (let_in,) = get(one, f"{prefix}/api/jobs", lifespan=False, headers={"Authorization": "Bearer anna"})
        assert let_in.status_code == 200


def test_an_unknown_host_name_is_a_421(database_url: str) -> None:
    app = open_app(database_url, hosts=["localhost", "[::1]"])
    for host, status in (("localhost:8000", 200), ("[::1]:8000", 200), ("LOCALHOST", 200), ("evil.example", 421)):
        assert get(app, "/api/jobs", headers={"Host": host})[0].status_code == status


def test_a_bug_is_a_500_without_its_traceback(database_url: str) -> None:
    def broken(request: Request) -> None:
        raise RuntimeError("secret")

    detail = problem(get(create_app(url=database_url, authenticate=broken), "/api/jobs")[0], 500)
    assert "secret" not in detail


def test_readyz_is_ready_when_database_and_broker_answer(
    app: Starlette, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "BROKER_SECONDS", 300.0)
    monkeypatch.setattr(queue_admin, "ANSWER_SECONDS", 300.0)
    monkeypatch.setenv("AMQP_URL", f"amqp://127.0.0.1:1;{amqp_url}")
    (answer,) = get(app, "/readyz")
    assert answer.json() == {"status": "ready", "checks": {"database": "ok", "broker": "ok"}}


def test_readyz_is_a_503_without_a_broker(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AMQP_URL", f"amqp://anna:hunter2@127.0.0.1:{silent.getsockname()[1]}")
        (answer,) = get(app, "/readyz")
    assert "RabbitMQ" in problem(answer, 503)
    assert "hunter2" not in answer.text
    assert answer.json()["checks"]["database"] == "ok"


def test_probes_at_the_same_time_ask_the_broker_once(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, asked, probes = list[Request](), list[str](), 20

    async def arrive(request: Request) -> str:
        arrived.append(request)
        return health.OK

    def answers(url: str) -> bool:
        asked.append(url)
        return bool(wait_until(lambda: len(arrived) >= probes, 300))

    monkeypatch.setattr(health, "_database", arrive)
    monkeypatch.setattr(health, "_answers", answers)
    monkeypatch.setattr(health, "BROKER_SECONDS", 300.0)
    monkeypatch.setenv("AMQP_URL", "amqp://one.example")
    assert {answer.status_code for answer in get(app, *["/readyz"] * probes)} == {200}
    assert len(asked) == 1
    assert get(app, "/readyz")[0].status_code == 200
    assert len(asked) == 2


def test_a_probe_waits_for_the_broker_no_longer_than_a_probe_may(
    app: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a node may have a hundred tries in it, or its name may not be found for half a minute."""
    asked, end = list[str](), threading.Event()

    def answers(url: str) -> bool:
        asked.append(url)
        return end.wait(300)

    async def probe() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            found = [await client.get("/readyz") for _ in range(2)]
            end.set()
            await asyncio.gather(*health._checks.values())
            monkeypatch.setattr(health, "BROKER_SECONDS", 300.0)
            return [*found, await client.get("/readyz")]

    monkeypatch.setattr(health, "_answers", answers)
    monkeypatch.setattr(health, "BROKER_SECONDS", 0.1)
    monkeypatch.setenv("AMQP_URL", "amqp://one.example")
    *early, late = asyncio.run(probe())
    assert [(one.status_code, one.json()["checks"]["broker"]) for one in early] == [(503, health.CLOSED)] * 2
    assert late.status_code == 200
    assert len(asked) == 2


def test_probes_fill_no_log_while_the_broker_is_away(
    app: Starlette, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A probe has no login, so anybody may send many."""
    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", 300)
    monkeypatch.setattr(health, "_log_outage", outage.OutageLog(logging.getLogger("callboard.web"), "away: %s"))
    monkeypatch.setenv("AMQP_URL", "amqp://127.0.0.1:1")
    for _ in range(3):
        assert get(app, "/readyz")[0].status_code == 503
    assert sum(record.name == "callboard.web" for record in caplog.records) == 1


def test_readyz_is_a_503_on_a_database_without_the_schema(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMQP_URL", raising=False)
    ready, jobs = get(open_app(empty_database_url), "/readyz", "/api/jobs")
    assert "callboard migrate" in problem(ready, 503)
    assert "callboard migrate" in problem(jobs, 503)


def test_a_missing_database_url_is_a_503(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    jobs, ready, health = get(open_app(None), "/api/jobs", "/readyz", "/healthz")
    assert "DATABASE_URL" in problem(jobs, 503)
    assert "DATABASE_URL" in problem(ready, 503)
    assert health.status_code == 200


def test_a_database_that_is_down_is_a_503_until_it_is_back(
    private_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is away: the pool's pauses between two tries, which double, are as if after hours."""
    monkeypatch.setattr(psycopg_pool.base.AttemptWithBackoff, "INITIAL_DELAY", 10_000.0)
    migrate(private_server.url)
    app = open_app(private_server.url)

    async def through_a_restart() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = [await client.get("/api/jobs")]
            private_server.kill()
            async with asyncio.timeout(300):  # a session may answer once more before it sees that its server is gone
                while (down := await client.get("/api/jobs")).status_code == 200:
                    pass
            answers += [down, await client.get("/readyz"), await client.get("/healthz")]
            await asyncio.to_thread(private_server.start)
            async with asyncio.timeout(150):  # half of the time for which the pool tries if nobody tells it
                while (again := await client.get("/api/jobs")).status_code == 503:
                    pass
            await app.state.database.close()
            return [*answers, again]

    before, jobs, ready, health, after = asyncio.run(through_a_restart())
    assert (before.status_code, health.status_code, after.status_code) == (200, 200, 200)
    assert "PostgreSQL" in problem(jobs, 503)
    assert "PostgreSQL" in problem(ready, 503)
    assert jobs.headers["retry-after"] == "1"


def sessions(conn: Conn, where: str) -> int:
    """How many other sessions of this test's database are like this, but for autovacuum."""
    found = conn.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        f" AND backend_type = 'client backend' AND {where}"
    )
    return found.rowcount


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, while the event loop goes on."""
    assert await asyncio.to_thread(wait_until, condition, 300)


def test_changes_that_wait_hold_up_neither_reads_nor_pages(
    conn: Conn, app: Starlette, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 300.0)
    monkeypatch.setattr(timings, "ACTION_LOCK_WAIT_SECONDS", 300.0)
    monkeypatch.delenv("AMQP_URL", raising=False)
    job, changes, refused = make_job(conn, 1), 60, 3

    async def while_the_job_is_locked() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            with connect(database_url) as other, other.transaction():
                other.execute("SELECT FROM callboard.jobs WHERE id = %s FOR UPDATE", (job,))
                posts = [asyncio.ensure_future(client.post(f"/api/jobs/{job}/pause")) for _ in range(changes)]
                await until(lambda: sessions(conn, "wait_event_type = 'Lock'") == database.WRITERS)
                paths = ("/", f"/api/jobs/{job}", "/readyz") * 10
                for answer in await asyncio.gather(*(client.get(path) for path in paths)):
                    assert answer.status_code == 200
                assert sessions(conn, "true") <= database.CONNECTIONS + 1  # `other`
                monkeypatch.setattr(database, "WAIT_SECONDS", 0.1)
                posts += [asyncio.ensure_future(client.post(f"/api/jobs/{job}/pause")) for _ in range(refused)]
                await until(lambda: sum(post.done() for post in posts) == refused)
            answers = await asyncio.gather(*posts)
            await app.state.database.close()
        return answers

    answers = asyncio.run(while_the_job_is_locked())
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * changes + [503] * refused
    busy = next(answer for answer in answers if answer.status_code == 503)
    assert "nothing was changed" in problem(busy, 503)


def test_a_read_waits_longer_while_the_database_answers_others(
    conn: Conn, app: Starlette, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(database, "BUSY_SECONDS", 300.0)
    readers = database.CONNECTIONS - database.WRITERS - database.SUBMITTERS

    async def while_all_readers_wait() -> list[httpx.Response]:
        own, transport = app.state.database, httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            with connect(database_url) as other, other.transaction():
                other.execute("LOCK TABLE callboard.jobs")
                own._answered = math.inf
                asked = [asyncio.ensure_future(client.get("/api/jobs")) for _ in range(readers)]
                await until(lambda: sessions(conn, "wait_event_type = 'Lock'") == readers)
                stats = (await own.pool()).get_stats
                before = stats().get("requests_errors", 0)
                asked.append(asyncio.ensure_future(client.get("/api/jobs")))
                await until(lambda: stats().get("requests_errors", 0) > before)
                own._answered = 0.0
                problem(await client.get("/api/jobs"), 503)
            answers = await asyncio.gather(*asked)
            await own.close()
        return answers

    monkeypatch.setattr(pool, "_BEGIN_READ", pool._BEGIN_READ.replace("5s", "300s"))
    assert [answer.status_code for answer in asyncio.run(while_all_readers_wait())] == [200] * (readers + 1)


def test_a_read_that_takes_too_long_is_stopped_on_the_server(
    conn: Conn, app: Starlette, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with conn.transaction(), monkeypatch.context() as impatient:
        impatient.setattr(pool, "_BEGIN_READ", pool._BEGIN_READ.replace("5s", "100ms"))
        conn.execute("LOCK TABLE callboard.jobs")
        for answer in get(app, *["/api/jobs"] * 3, lifespan=False):
            assert "took longer" in problem(answer, 503)
        with connect(database_url) as other:
            assert sessions(other, "wait_event_type = 'Lock'") == 0
    assert get(app, "/api/jobs", lifespan=False)[0].status_code == 200


def test_a_read_is_not_planned_again(conn: Conn) -> None:
    """Whatever the planner makes of the parameters of a list among many jobs."""
    conn.execute("INSERT INTO callboard.jobs (name) SELECT 'a job' FROM generate_series(1, 5000)")
    conn.execute("ANALYZE callboard.jobs")
    for _ in range(2):
        conn.execute(pool._BEGIN_READ, prepare=False)
        queries.run(conn, queries.jobs())
        conn.commit()
    plans = "SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements WHERE statement LIKE '%WITH%'"
    assert conn.execute(plans).fetchone() == (2, 0)


def test_a_time_that_no_client_could_read_is_a_422(conn: Conn, app: Starlette) -> None:
    job = make_job(conn, 1)

    async def patch(body: dict[str, str]) -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.patch(f"/api/jobs/{job}", json=body)
            await app.state.database.close()
            return answer

    for name in ("deadline", "at"):
        for when in ("9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+12:00"):
            assert "before the year 9999" in problem(asyncio.run(patch({name: when})), 422)
    assert get(app, f"/api/jobs/{job}")[0].status_code == 200
