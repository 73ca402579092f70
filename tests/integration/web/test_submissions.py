"""Jobs that are submitted over HTTP: what is stored, what is refused, and what becomes of a body that breaks off."""

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import to_thread
from starlette.applications import Starlette

from callboard import Identity
from callboard.commands.main import main
from callboard.middleware.submission import submission as chunks
from callboard.sql import timings
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import WorkerInfo
from callboard.sql.signature import Signature
from callboard.sql.states import SCOPES
from callboard.sql.writes import actions, retry_action, submission, workers
from callboard.sql.writes import run_again as copies
from callboard.sql.writes.requests import NotPossible, Requester
from callboard.sql.writes.retry_action import RetrySelection
from callboard.sql.writes.run_again import Again
from callboard.web import create_app, submissions, submitter
from tests.support.jobs import cancel, make_job, make_mixed_job, send, status
from tests.support.webapp import served, started
from tests.support.workers import wait_until

US = Requester("http", "anna")
LINES = {"Content-Type": "application/x-ndjson"}
#: Lines of a body that would take far more memory than is allowed, were they kept.
MANY_LINES = 50_000


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    """A connection to a database in which a worker has announced the actor `work(n, text=…)`."""
    with connect(database_url) as connection:
        takes = Signature("work", ("n", "text"), frozenset(["n", "text"]), frozenset(["n"]))
        known = WorkerInfo("backstage", 1, 8, "2026.11", {"work": "default", "other": "default"}, {"work": takes})
        workers.register_worker(connection, known)
        yield connection
        assert queries.run(connection, queries.verify())["drift"] == []


@pytest.fixture
def app(database_url: str, conn: Conn) -> Iterator[Starlette]:
    """The app on this test's database."""
    app = create_app(url=database_url, open_to_everyone=True)
    yield app
    app.state.submitter.close()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have 50 items of a submission stored at a time."""
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 50)


def post(app: Starlette, body: Any, path: str = "/api/v1/jobs", **headers: str) -> httpx.Response:
    """The answer to a POST of JSON, or of lines if the body is bytes."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            if isinstance(body, bytes):
                return await client.post(path, content=body, headers=LINES | headers)
            return await client.post(path, json=body, headers=headers)

    return asyncio.run(ask())


def lines(*values: Any) -> bytes:
    return b"".join(value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n" for value in values)


def calls(conn: Conn, job: int) -> list[Any]:
    """The arguments of a job's items."""
    page, _ = queries.run(conn, queries.items(job))
    return [item["kwargs"] or item["args"] for item in page]


def left(conn: Conn) -> list[tuple[str, int]]:
    """The jobs that anybody can see: state and items."""
    return [(job["state"], job["total"]) for job in queries.run(conn, queries.jobs())[0]]


def test_a_job_is_submitted_as_json(conn: Conn, app: Starlette) -> None:
    body = {"actor": "work", "items": [{"n": 1}, [2, "two"], 3], "name": "three", "metadata": {"a": 1}, "rate": "5/s"}
    answer = post(app, body)
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (job["name"], job["sealed"], job["total"], job["pending"]) == ("three", True, 3, 3)
    assert (job["limits"], job["metadata"], job["created_by"]) == ({"rate": "5/s"}, {"a": 1}, "127.0.0.1")
    assert calls(conn, job["id"]) == [{"n": 1}, [2, "two"], [3]]
    (done,) = queries.run(conn, queries.actions(job["id"]))[0]
    assert (done["action"], done["who"], done["via"]) == ("submit", "127.0.0.1", "http")
    marked = post(app, b'\xef\xbb\xbf{"actor": "work", "items": [1]}', **{"Content-Type": "application/json"})
    assert marked.status_code == 201, "as some programs save a file"


def test_a_job_is_submitted_as_lines(conn: Conn, app: Starlette) -> None:
    answer = post(app, lines({"actor": "work", "item_key": "n"}, {"n": 1}, b"\n", {"n": 2}, {"n": 1}, b'{"n": 3}'))
    assert answer.status_code == 201
    job = answer.json()
    assert (job["total"], job["consumed"]) == (3, 4)
    assert calls(conn, job["id"]) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_the_same_submission_gives_the_same_job(conn: Conn, app: Starlette) -> None:
    body = {"actor": "work", "items": [1, 2]}
    first = post(app, body, **{"Idempotency-Key": '"k"'})
    again = post(app, {**body, "key": "k"})
    streamed = post(app, lines({"actor": "work", "key": "k"}, 1, 2))
    assert [one.status_code for one in (first, again, streamed)] == [201, 200, 200]
    assert first.json()["id"] == again.json()["id"] == streamed.json()["id"]
    for other in (
        {**body, "items": [1, 3]}, {**body, "items": [1]}, {**body, "items": [1, 2, 3]}, {**body, "actor": "other"},
        {**body, "rate": "1/s"},
    ):  # fmt: skip
        refused = post(app, other, **{"Idempotency-Key": "k"})
        assert (refused.status_code, refused.json()["code"]) == (422, "key_in_use")
    assert left(conn) == [("pending", 2)]


def test_the_header_of_a_key_is_one_text_in_utf_8(conn: Conn, app: Starlette) -> None:
    async def ask(*keys: bytes) -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = [(b"Idempotency-Key", key) for key in keys]
            return await client.post("/api/jobs", json={"actor": "work", "items": [1]}, headers=headers)

    assert asyncio.run(ask("Müller".encode())).json()["key"] == "Müller"
    for keys, said in (([b"a", b"b"], "is given twice"), (["Müller".encode("latin-1")], "must be in UTF-8")):
        answer = asyncio.run(ask(*keys))
        assert (answer.status_code, answer.json()["detail"]) == (400, f"Idempotency-Key {said}")


def test_a_bad_line_is_named_and_leaves_nothing_behind(conn: Conn, app: Starlette, small_chunks: None) -> None:
    wrong = [b"{\n", {"m": 1}, b"\n", b'"\\ud800"\n', b"[" * 5000 + b"\n", b"1" * 1_048_577 + b"\n", b"\xff\n"]
    for key in (None, "k"):
        answer = post(app, lines({"actor": "work", "key": key}, *range(60), *wrong, 9))
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["line"]) == (422, "bad_items", 62)
        assert [one["pointer"] for one in problem["errors"]] == [f"#/line/{n}" for n in (62, 63, 65, 66, 67, 68)]
        assert "line 63 does not fit its actor: work has no argument 'm'" in problem["detail"]
    assert left(conn) == []
    assert conn.execute(
        "SELECT count(*) FROM callboard.jobs WHERE deleted_at IS NULL OR key IS NOT NULL"
    ).fetchone() == (0,)
    skipping = post(app, lines({"actor": "work", "key": "k", "skip_bad": True}, 1, *wrong, 9))
    assert (skipping.status_code, skipping.json()["total"]) == (201, 2)
    (done,) = queries.run(conn, queries.actions(skipping.json()["id"]))[0]
    assert len(done["detail"]["left_out"]) == 6


def test_a_bad_item_of_json_is_named_and_leaves_nothing_behind(conn: Conn, app: Starlette) -> None:
    answer = post(app, {"actor": "work", "items": [1, {"m": 1}, {"n": 2, "text": "é" * 300_000}]})
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == ["#/items/1", "#/items/2"]
    assert left(conn) == []


#: A change of a job that is right, the status of the answer, and how its detail begins.
NONSENSE: list[tuple[dict[str, Any], int, str]] = [
    ({"actor": None}, 422, "actor"), ({"actor": "nobody"}, 422, "no actor 'nobody'"),
    ({"actor": "\0"}, 422, "no actor"), ({"actor": "a" * 5000}, 422, "no actor"), ({"items": {}}, 422, "items"),
    ({"odd": 1}, 422, "odd"), ({"name": "a\0"}, 422, "name"), ({"name": "a" * 2000}, 422, "name"),
    ({"name": 1}, 422, "name"), ({"key": "a\0"}, 422, "key"), ({"metadata": {"a": "\0"}}, 422, "metadata"),
    ({"metadata": []}, 422, "metadata"), ({"tenant": "\0"}, 422, "tenant"), ({"rate": "fast"}, 422, "rate"),
    ({"chunk": 0}, 422, "chunk"), ({"chunk": 10**30}, 422, "chunk"), ({"priority": 2**40}, 422, "priority"),
    ({"priority": 1.5}, 422, "priority"), ({"max_failures": "x"}, 422, "max_failures"),
    ({"concurrency": 0}, 422, "concurrency"), ({"concurrency_by": "odd=1"}, 422, "concurrency_by"),
    ({"lanes": 5}, 422, "lanes"), ({"concurrency_by": "n=1", "lanes": 0}, 422, "lanes"),
    ({"at": "soon"}, 422, "at"), ({"delay": "x"}, 422, "delay"), ({"deadline": "2020"}, 422, "deadline"),
    ({"keep": "x"}, 422, "keep"), ({"on_fail": "nobody"}, 422, "no actor"),
    ({"on_complete": "ftp://a"}, 422, "a webhook"), ({"on_cancel": ["http://a/\0"]}, 422, "a webhook"),
    ({"on_cancel": [f"http://a/{n}" for n in range(21)]}, 422, "on_cancel"),
    ({"item_key": "m"}, 422, "nothing was stored"), ({"item_key": "\0"}, 422, "nothing was stored"),
    ({"items": [[[]] * 400_000]}, 413, "the body is larger"),
]  # fmt: skip
#: First lines that are no job, and the status of the answer.
NO_JOBS = [
    (b"", 422), (b"\n\n", 422), (b"1", 422), (b"{", 400), (b"[" * 9000, 422), (b"\xff\xfe", 400), (b"\0", 400),
    (b'{"actor": "\\ud800"}', 400), (b'{"actor": "work", "items": [1]}\n2', 422), (b'{"a": 1' + b" " * 2**20, 413),
]  # fmt: skip


def test_what_makes_no_sense_is_refused(conn: Conn, app: Starlette) -> None:
    for change, code, names in NONSENSE:
        answer = post(app, {"actor": "work", "items": [1], **change})
        assert answer.status_code == code, change
        assert answer.json()["detail"].startswith(names), change
        streamed = post(app, lines({"actor": "work", **change}, 1))
        assert streamed.status_code in ((413, 422) if "items" in change else (code,)), change
    assert left(conn) == []


@pytest.mark.parametrize("does", ["RAISE 'under audit'", "RETURN NULL", "PERFORM * FROM no_table"])
def test_what_a_trigger_of_the_users_refuses_is_no_bug(conn: Conn, app: Starlette, does: str) -> None:
    conn.execute(f"CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {does}; END $$".encode())
    conn.execute("CREATE TRIGGER audit BEFORE INSERT ON callboard.items FOR EACH ROW EXECUTE FUNCTION audit()")
    for body in ({"actor": "work", "items": [1]}, lines({"actor": "work"}, 1)):
        answer = post(app, body)
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("a function of this database refuses it: ")
    assert all(total == 0 for _, total in left(conn))


def test_a_first_line_that_is_no_job_is_refused(conn: Conn, app: Starlette) -> None:
    for body, code in NO_JOBS:
        answer = post(app, body)
        assert (answer.status_code, answer.headers["content-type"]) == (code, "application/problem+json"), body[:40]
    assert left(conn) == []


def test_other_types_of_bodies_are_refused(app: Starlette) -> None:
    answer = post(app, b"a,b", **{"Content-Type": "text/csv"})
    assert answer.status_code == 415
    assert "application/json or application/x-ndjson" in answer.json()["detail"]
    for media in ("application/json", "application/x-ndjson"):
        packed = gzip.compress(b'{"actor": "work", "items": [1]}')
        answer = post(app, packed, **{"Content-Type": media, "Content-Encoding": "gzip"})
        assert answer.status_code == 415
        assert "send it without Content-Encoding gzip" in answer.json()["detail"]


def test_a_login_submits_for_its_tenant_and_under_its_name(conn: Conn, database_url: str) -> None:
    def seen_by(who: Identity) -> Starlette:
        return create_app(url=database_url, authenticate=lambda _request: who)

    body = {"actor": "work", "items": [1]}
    bound = seen_by(Identity("anna", tenant="mine"))
    answer = post(bound, body)
    assert (answer.status_code, answer.json()["tenant"], answer.json()["created_by"]) == (201, "mine", "anna")
    assert post(bound, {**body, "tenant": "mine"}).status_code == 201
    assert post(bound, {**body, "tenant": "other"}).status_code == 403
    assert post(seen_by(Identity("root")), {**body, "tenant": "other"}).json()["tenant"] == "other"
    assert post(seen_by(Identity("eve", scopes=["read", "control"])), body).status_code == 403
    assert len(left(conn)) == 3


def test_an_open_job_takes_items_until_it_is_sealed(conn: Conn, app: Starlette) -> None:
    opened = post(app, {"actor": "work", "open": True, "key": "k", "item_key": "n", "items": [{"n": 1}]})
    job = opened.json()
    assert (opened.status_code, job["sealed"], job["total"]) == (201, False, 1)
    assert conn.execute("SELECT submitting_until, held, bulk_end FROM callboard.jobs").fetchone() == (None, False, 1)
    path = f"/api/v1/jobs/{job['id']}"
    assert post(app, lines({"n": 2}, {"n": 1}), f"{path}/items?item_key=n&start=1").json()["consumed"] == 3
    again = post(app, lines({"n": 2}, {"n": 1}), f"{path}/items?item_key=n&start=1")
    assert (again.status_code, "3 inputs were added" in again.json()["detail"]) == (409, True)
    assert post(app, {"items": [{"n": 3}]}, f"{path}/items?item_key=n").json()["total"] == 3
    for body in (lines({"n": 4}, {"m": 5}), {"items": [{"n": 4}, {"m": 5}]}, {"items": 1}, {"odd": 1}, lines(b"{")):
        assert post(app, body, f"{path}/items").status_code == 422
    assert post(app, lines(*range(10_001)), f"{path}/items").status_code == 413
    assert post(app, {"actor": "work", "open": True, "key": "k", "item_key": "n", "items": []}).status_code == 200
    assert submission.fail_abandoned_submissions(conn) == []
    sealed = post(app, {}, f"{path}/seal")
    assert (sealed.status_code, sealed.json()["sealed"], sealed.json()["total"]) == (200, True, 3)
    assert post(app, {}, f"{path}/seal").status_code == 200
    assert post(app, {"items": [1]}, f"{path}/items").status_code == 409
    assert calls(conn, job["id"]) == [{"n": 1}, {"n": 2}, {"n": 3}]
    done = [one["action"] for one in queries.run(conn, queries.actions(job["id"]))[0]]
    assert done == ["seal", "submit"]
    other = make_job(conn, 1, sealed=False)
    for what in ("items", "seal"):
        answer = post(app, {"items": [1]} if what == "items" else {}, f"/api/jobs/{other}/{what}")
        assert answer.status_code == 409


# Stages --------------------------------------------------------------------------------------------------------------


def _as(who: Identity, _request: object) -> Identity:
    return who


def test_a_job_of_stages_is_submitted(conn: Conn, app: Starlette, database_url: str) -> None:
    stages: list[dict[str, Any]] = [
        {"actor": "work", "items": [1, {"n": 2}]},
        {"actor": "other", "make": "shop.stages:make", "name": "sum up", "on_failure": "go on", "chunk": 5},
        {"actor": "other"},
    ]
    body = {"name": "audit", "stages": stages, "rate": "5/s", "key": "k"}
    answer = post(app, body)
    job = answer.json()
    assert (answer.status_code, job["name"], job["total"], job["consumed"]) == (201, "audit", 2, 2)
    assert [(one["name"], one["actor"], one["on_failure"], one["sealed"]) for one in job["stages"]] == [
        ("work", "work", "stop", True), ("sum up", "other", "go on", False), ("other", "other", "stop", False),
    ]  # fmt: skip
    assert calls(conn, job["stages"][0]["job"]) == [[1], {"n": 2}]
    made = conn.execute(
        "SELECT makes, chunk, held, bulk_end FROM callboard.jobs WHERE stage IS NOT NULL ORDER BY stage"
    )
    assert made.fetchall() == [(None, None, False, 2), ("shop.stages:make", 5, False, 0), (None, None, False, 0)]
    assert (post(app, body).status_code, post(app, body).json()["id"]) == (200, job["id"])
    without = [{"actor": "work"}, *stages[1:]]
    streamed = post(app, lines({**body, "stages": without}, 1, {"n": 2}))
    assert (streamed.status_code, streamed.json()["id"]) == (200, job["id"])

    for key in (None, "other"):
        bad = post(app, lines({**body, "stages": without, "key": key, "on_fail": "work"}, *range(5001), {"m": 1}))
        assert (bad.status_code, bad.json()["line"]) == (422, 5003)
    assert len(left(conn)) == 1
    assert conn.execute("SELECT count(*) FROM callboard.callbacks").fetchone() == (0,)
    nonsense: list[dict[str, Any]] = [
        {"name": None}, {"actor": "work"}, {"items": [1]}, {"chunk": 2}, {"open": True}, {"item_key": "n"},
        {"stages": []}, {"stages": [{}]}, {"stages": [stages[1]]}, {"stages": [stages[0], stages[0]]},
        {"stages": [{"actor": "nobody"}]}, {"stages": [{**stages[0], "odd": 1}]},
        {"stages": [{**stages[0], "chunk": 0}]},
        {"stages": [stages[0], {"actor": "other", "make": "no path"}]}, {"rate": "x"},
        {"stages": [stages[0], {"actor": "other", "on_failure": "odd"}]}, {"stages": [{**stages[0], "name": "\0"}]},
    ]  # fmt: skip
    for change in nonsense:
        assert post(app, {**body, "key": None, **change}).status_code == 422, change
    assert len(left(conn)) == 1

    for anna in (Identity("anna"), Identity("anna", "acme", SCOPES)):
        login = create_app(url=database_url, authenticate=partial(_as, anna))
        refused = post(login, {**body, "key": None})
        assert (refused.status_code, "scope admin" in refused.json()["detail"]) == (403, True)
        assert post(login, {**body, "key": None, "stages": [stages[0], stages[2]]}).status_code == 201


def test_a_body_of_stages_that_breaks_off_goes_on_when_it_is_sent_again(
    conn: Conn, app: Starlette, small_chunks: None
) -> None:
    head: dict[str, Any] = {"name": "audit", "stages": [{"actor": "work"}, {"actor": "other"}]}
    with served(app) as address:
        first = Sender(address, {**head, "key": "k"})
        first.send(lines(*range(51)))
        job = wait_for_items(conn, 50)
        body = lines({**head, "key": "k"}, *range(51))
        assert httpx.post(f"{address}/api/jobs", content=body, headers=LINES).status_code == 409
        first.connection.close()

        def again() -> bool:
            return httpx.post(f"{address}/api/jobs", content=body, headers=LINES).status_code == 201

        assert wait_until(again, 300)
        assert (status(conn, job)["total"], status(conn, job)["state"]) == (51, "pending")
        other = Sender(address, head)
        other.send(lines(*range(51)))
        assert wait_until(lambda: len(left(conn)) == 2, 300)
        wait_for_items(conn, 50)
        other.connection.close()
        assert wait_until(lambda: left(conn)[0] == ("failed", 50), 300)


# Run again -----------------------------------------------------------------------------------------------------------


def test_a_job_is_run_again_as_a_new_one(conn: Conn, app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "CHUNK_ITEMS", 7)
    old = make_mixed_job(conn)
    path = f"/api/v1/jobs/{old}/run-again"
    assert post(app, {}, path).status_code == 409  # it is open
    actions.limit(conn, old, US, {"rate": "5/s", "priority": 3})
    cancel(conn, old)
    conn.execute("DELETE FROM callboard.running")
    answer = post(app, {}, path)
    new = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/api/v1/jobs/{new['id']}")
    assert (new["total"], new["pending"], new["sealed"], new["consumed"]) == (100, 100, True, 100)
    assert (new["name"], new["metadata"]) == ("mixed", {"a": 1})
    assert new["limits"] == {"rate": "5/s", "priority": 3}
    assert calls(conn, new["id"]) == calls(conn, old)

    given: dict[str, Any] = {
        "states": ["failed", "skipped"],
        "name": "once more",
        "rate": None,
        "keep": "1d",
        "key": "k",
        "metadata": {},
    }
    some = post(app, given, path).json()
    assert calls(conn, some["id"]) == [[n] for n in range(20, 30)]
    assert (some["name"], some["limits"], some["metadata"]) == ("once more", {"priority": 3, "keep": "1d"}, {})
    again = post(app, given, path)
    assert (again.status_code, again.json()["id"]) == (200, some["id"])
    assert post(app, {**given, "states": ["failed"]}, path).json()["code"] == "key_in_use"
    assert post(app, {"states": ["cancelled"]}, path).json()["total"] == 70
    assert [one["detail"]["count"] for one in queries.run(conn, queries.actions(old))[0][:3]] == [70, 10, 100]
    for body, code in (
        ({"states": ["queued"]}, 422), ({"states": []}, 422), ({"states": "failed"}, 422), ({"odd": 1}, 422),
        ({"rate": "x"}, 422), ({"name": "\0"}, 422), ({"key": "\0"}, 422), ({"metadata": {"a": "\0"}}, 422),
    ):  # fmt: skip
        assert post(app, body, path).status_code == code, body
    before = len(left(conn))
    sent = make_job(conn, 0, sealed=False)
    send(conn, sent, 0)
    cancel(conn, sent)
    assert post(app, {}, f"/api/jobs/{sent}/run-again").status_code == 409
    assert len(left(conn)) == before + 1


def test_commands_run_a_job_again_and_seal_one(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    old = make_job(conn, 5)
    assert main(["run-again", str(old)]) == 1
    cancel(conn, old)
    capsys.readouterr()
    assert main(["run-again", str(old), "--state", "cancelled", "--metadata", '{"b": 2}']) == 0
    new = status(conn, int(capsys.readouterr().out))
    assert (new["total"], new["metadata"]) == (5, {"b": 2})
    assert main(["run-again", str(old), "--name", ""]) == 2
    app = create_app(url=database_url, open_to_everyone=True)
    opened = post(app, {"actor": "work", "open": True}).json()["id"]
    assert main(["seal", str(opened)]) == 0
    assert status(conn, opened)["state"] == "completed"
    app.state.submitter.close()


def test_a_copy_that_breaks_off_leaves_nothing_or_goes_on_by_its_key(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "CHUNK_ITEMS", 7)
    old = make_job(conn, 20)
    cancel(conn, old)

    for key, then in ((None, []), ("k", [("pending", 7)])):
        statements = iter(range(100))

        def write(statement: Any, count: Iterator[int] = statements) -> Any:
            if next(count) == 2:  # after the making of the job, and the first chunk
                raise ConnectionError
            return statement(conn)

        with pytest.raises(ConnectionError):
            copies.run_again(write, old, US, Again(key=key))
        assert left(conn)[:-1] == then
    new, fresh = copies.run_again(lambda statement: statement(conn), old, US, Again(key="k"))
    assert (fresh, calls(conn, new)) == (True, calls(conn, old))


def test_a_copy_that_meets_a_lock_of_others_leaves_nothing_or_goes_on_by_its_key(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "CHUNK_ITEMS", 7)
    monkeypatch.setattr(timings, "ACTION_LOCK_WAIT_SECONDS", 0.1)
    old = make_job(conn, 20)
    cancel(conn, old)
    for key, then in ((None, []), ("k", [("pending", 7)])):
        with connect(database_url) as other, other.transaction():
            statements = iter(range(100))

            def write(statement: Any, count: Iterator[int] = statements, other: Conn = other) -> Any:
                if next(count) == 2:  # after the making of the job, and the first chunk
                    other.execute("SELECT FROM callboard.jobs WHERE id = %s FOR UPDATE", (old,))
                return statement(conn)

            with pytest.raises(NotPossible, match="is locked, perhaps by process"):
                copies.run_again(write, old, US, Again(key=key))
            assert left(conn)[:-1] == then
    new, fresh = copies.run_again(lambda statement: statement(conn), old, US, Again(key="k"))
    assert (fresh, calls(conn, new)) == (True, calls(conn, old))


def test_a_job_that_is_opened_again_is_copied_no_further(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "CHUNK_ITEMS", 7)
    old = make_job(conn, 20)
    cancel(conn, old)
    statements = iter(range(100))

    def write(statement: Any) -> Any:
        if next(statements) == 2:
            retry_action.retry(conn, old, US, RetrySelection(["cancelled"]))
        return statement(conn)

    with pytest.raises(NotPossible, match="was opened again"):
        copies.run_again(write, old, US, Again())
    assert len(left(conn)) == 1


# Bodies that break off -----------------------------------------------------------------------------------------------


class Sender:
    """A client that sends a chunked body bit by bit, and reads the answer."""

    def __init__(self, address: str, head: dict[str, Any], *headers: bytes) -> None:
        host, port = address.removeprefix("http://").split(":")
        self.connection = socket.create_connection((host, int(port)), 300)
        self.connection.sendall(
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/x-ndjson\r\n" + b"".join(headers) + b"\r\n"
        )
        self.send(lines(head))

    def send(self, data: bytes) -> None:
        self.connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> bytes:
        self.connection.sendall(b"0\r\n\r\n")
        with self.connection:
            return self.connection.recv(65536)


def wait_for_items(conn: Conn, total: int) -> int:
    """The newest job, once it has so many items."""

    def there() -> bool:
        return any(n >= total for _, n in left(conn)[:1])

    assert wait_until(there, 300)
    return int(queries.run(conn, queries.jobs())[0][0]["id"])


def test_bodies_that_a_tenant_sends_slowly_leave_room_for_others(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("STREAMS", 3), ("TENANT_STREAMS", 1)):
        monkeypatch.setattr(submitter, name, most)
    app = create_app(url=database_url, authenticate=lambda request: Identity("anna", request.headers.get("x-tenant")))
    with served(app) as address:

        def submit(**who: str) -> int:
            headers = {**LINES, **{f"X-{name}": value for name, value in who.items()}}
            return httpx.post(f"{address}/api/jobs", content=lines({"actor": "work"}, 1), headers=headers).status_code

        slow = [Sender(address, {"actor": "work"}, b"X-Tenant: acme\r\n")]
        assert wait_until(lambda: app.state.submitter._reading.count("acme") == 1, 300)
        assert (submit(Tenant="acme"), submit(Tenant="other"), submit()) == (503, 201, 201)
        slow += [Sender(address, {"actor": "work"}) for _ in range(2)]
        assert wait_until(lambda: app.state.submitter._reading.count(None) == 2, 300)
        assert (submit(Tenant="other"), submit()) == (503, 503)
        for sender in slow:
            assert b" 201 " in sender.end()
        assert submit(Tenant="acme") == 201


def test_submissions_that_wait_take_no_thread_of_other_requests(
    conn: Conn, app: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are read in these threads, a login may be asked in one, and a lock on a table holds every submission."""
    job, waiting, end = make_job(conn, 1), list[object](), threading.Event()

    def wait(*_: object, **__: object) -> tuple[int, int]:
        waiting.append(None)
        end.wait(300)
        return job, 200

    async def submit() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            body = lines({"actor": "work"}, 1)
            posts = [
                client.post("/api/jobs", json={"actor": "work", "items": [1]}),
                client.post("/api/jobs", content=body, headers=LINES),
                client.post(f"/api/jobs/{job}/items", json={"items": [1]}),
                client.post(f"/api/jobs/{job}/run-again", json={}),
            ]
            sent = asyncio.gather(*posts)
            assert await asyncio.to_thread(wait_until, lambda: len(waiting) == len(posts), 300)
            taken = to_thread.current_default_thread_limiter().borrowed_tokens
            end.set()
            assert {answer.status_code for answer in await sent} == {200, 201}
            return taken

    for name in ("_store", "_add", "run_again_"):
        monkeypatch.setattr(submissions, name, wait)
    assert asyncio.run(submit()) == 0


def test_a_body_that_breaks_off_goes_on_when_it_is_sent_again(conn: Conn, app: Starlette, small_chunks: None) -> None:
    with served(app) as address:
        first = Sender(address, {"actor": "work", "key": "k"})
        first.send(lines(*range(51)))
        job = wait_for_items(conn, 50)
        assert status(conn, job)["pending"] == 50
        assert conn.execute("SELECT count(*) FROM callboard.turns").fetchone() == (0,)
        body = lines({"actor": "work", "key": "k"}, *range(60))
        busy = httpx.post(f"{address}/api/v1/jobs", content=body, headers=LINES)
        assert (busy.status_code, busy.headers["retry-after"]) == (409, "5")
        first.connection.close()

        def again() -> bool:
            return httpx.post(f"{address}/api/v1/jobs", content=body, headers=LINES).status_code == 201

        assert wait_until(again, 300)
        found = httpx.get(f"{address}/api/v1/jobs/{job}").json()
        assert (found["consumed"], found["total"], found["sealed"]) == (60, 60, True)
        assert conn.execute("SELECT count(*) FROM callboard.turns").fetchone() == (1,)


def test_without_a_key_a_body_that_breaks_off_is_a_failed_job_of_which_nothing_ran(
    conn: Conn, app: Starlette, small_chunks: None
) -> None:
    with served(app) as address:
        sender = Sender(address, {"actor": "work"})
        sender.send(lines(*range(51)))
        job = wait_for_items(conn, 50)
        sender.connection.close()
        assert wait_until(lambda: status(conn, job)["state"] == "failed", 300)
        found = status(conn, job)
        assert (found["cancelled"], found["total"]) == (50, 50)
        assert found["reason"] == "its submission broke off at input 50: ClientDisconnect: its sender disconnected"
        httpx.post(f"{address}/api/v1/jobs/{job}/retry", json={"states": ["cancelled"]}).raise_for_status()
    found = status(conn, job)
    assert (found["state"], found["pending"], found["sealed"]) == ("pending", 50, True)


def test_a_body_that_does_not_go_on_is_given_up(conn: Conn, app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(app) as address:
        sender = Sender(address, {"actor": "work"})
        assert wait_until(lambda: conn.execute("SELECT FROM callboard.jobs").rowcount == 1, 300)
        monkeypatch.setattr("callboard.web.submitter.IDLE_SECONDS", 0.2)
        sender.send(lines(1))
        assert sender.connection.recv(100).startswith(b"HTTP/1.1 408 ")
        sender.connection.close()
    assert [state for state, _ in left(conn)] == ["failed"]


async def stream(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_a_line_may_come_in_parts(conn: Conn, app: Starlette) -> None:
    body = lines({"actor": "work"}, {"n": 1, "text": "é"}, 2)
    answer = post_parts(app, *(body[n : n + 1] for n in range(len(body))))
    assert calls(conn, answer.json()["id"]) == [{"n": 1, "text": "é"}, [2]]


def post_parts(app: Starlette, *parts: bytes) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/api/jobs", content=stream(*parts), headers=LINES)

    return asyncio.run(ask())


# Memory and the event loop --------------------------------------------------------------------------------------


def test_a_large_body_takes_no_memory_and_does_not_hold_up_the_event_loop(
    conn: Conn, database_url: str, tmp_path: Path
) -> None:
    note = b"x" * 1_700  # all of them are 85 MB

    def body() -> Iterator[bytes]:
        yield lines({"actor": "other"})
        for start in range(0, MANY_LINES, 1000):
            yield b"".join(b'{"customer": %d, "note": "%s"}\n' % (n, note) for n in range(start, start + 1000))

    with (
        started("tests.support.lag_app:app", database_url, tmp_path / "log") as (_, address),
        httpx.Client(base_url=address, timeout=300) as client,
    ):
        client.post("/api/jobs", json={"actor": "work", "items": [1]}).raise_for_status()
        before = client.get("/lag").json()

        def lag() -> float:
            """The lag of the event loop, in milliseconds, while a body is taken and its items are exported."""
            answer = client.post("/api/jobs", content=body(), headers=LINES)
            assert (answer.status_code, answer.json()["total"]) == (201, MANY_LINES)
            after = client.get("/lag").json()
            with client.stream("GET", f"/api/jobs/{answer.json()['id']}/export") as exported:
                assert sum(part.count(b"\n") for part in exported.iter_bytes()) == MANY_LINES
            exporting = client.get("/lag").json()
            assert max(after["memory"], exporting["memory"]) - before["memory"] < 64
            return float(max(after["p99"], exporting["p99"]))

        assert any(lag() < 100 for _ in range(3))  # of a machine that does other things, too
