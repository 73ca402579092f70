"""Whom the login of the app that mounts Callboard lets in, and what they see and change."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import UnauthenticatedUser
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from callboard import Identity
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.web import create_app
from callboard.web.endpoints import ENDPOINTS
from tests.support.jobs import make_job, make_mixed_job, status
from tests.support.webapp import get

#: Every route of one job's data, with its methods.
OF_A_JOB = [(one.method, f"/api/v1{one.path}") for one in ENDPOINTS if "{job}" in one.path]


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    """A connection to this test's database."""
    with connect(database_url) as connection:
        yield connection


def send(app: Starlette, method: str, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"rate": None} if method == "PATCH" else None
            return await client.request(method, path, json=body)

    return asyncio.run(ask())


def seen_by(url: str, who: Any) -> Starlette:
    """The app as its login takes every request for one of `who`."""
    return create_app(url=url, authenticate=lambda _request: who)


@pytest.mark.parametrize(
    "said", [False, True, "", "anna", 0, {}, {"name": "anna"}, UnauthenticatedUser(), Identity, object()]
)
def test_a_login_that_returns_something_else_lets_nobody_in(
    database_url: str, caplog: pytest.LogCaptureFixture, said: object
) -> None:
    with caplog.at_level(logging.ERROR, "callboard.web"):
        answers = get(seen_by(database_url, said), "/", "/jobs/1", "/api/jobs", "/api/jobs/1", "/healthz")
    assert [answer.status_code for answer in answers] == [500, 500, 500, 500, 200]
    assert "return callboard.Identity(name) to let somebody in" in caplog.text


def test_an_answer_of_the_login_is_sent_as_it_is(database_url: str) -> None:
    for said in (RedirectResponse("/login"), Response("<form action=/login>", 403, media_type="text/html")):
        (answer,) = get(seen_by(database_url, said), "/api/jobs")
        assert (answer.status_code, answer.content) == (said.status_code, said.body)
        assert answer.headers.get("location") == said.headers.get("location")
        assert "content-security-policy" not in answer.headers


def in_a_thread(raise_it: Callable[[], None]) -> Any:
    return lambda _request: raise_it()


def in_the_loop(raise_it: Callable[[], None]) -> Any:
    async def authenticate(_request: Request) -> None:
        raise_it()

    return authenticate


@pytest.mark.parametrize("form", [in_a_thread, in_the_loop])
@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (HTTPException(403), "Forbidden"),
        (HTTPException(429, "later", {"Retry-After": "7"}), "later"),
        (HTTPException(499, "gone"), "gone"),
    ],
)
def test_an_http_exception_of_the_login_is_answered_as_such(
    database_url: str, form: Any, error: HTTPException, detail: str
) -> None:
    def raise_it() -> None:
        raise error

    (answer,) = get(create_app(url=database_url, authenticate=form(raise_it)), "/api/jobs")
    assert (answer.status_code, answer.json()["detail"]) == (error.status_code, detail)
    assert answer.headers.items() >= {name.lower(): v for name, v in (error.headers or {}).items()}.items()


def test_one_who_may_only_read_changes_nothing(conn: Conn, database_url: str) -> None:
    job = make_mixed_job(conn)
    app = seen_by(database_url, Identity("anna", scopes=["read"]))
    for method, path in OF_A_JOB:
        answer = send(app, method, path.format(job=job, item=0))
        assert (answer.status_code == 403) == (method not in ("GET", "HEAD")), (method, path)
        if method not in ("GET", "HEAD"):
            assert "the scope control" in answer.json()["detail"]
    assert queries.run(conn, queries.actions(job))[0] == []
    assert send(seen_by(database_url, Identity("anna", scopes=[])), "GET", "/api/jobs").status_code == 403


def test_a_tenant_sees_and_changes_its_own_jobs_only(conn: Conn, database_url: str) -> None:
    mine, other = make_job(conn, 3, tenant="mine"), make_job(conn, 3, tenant="other")
    nobodys = make_job(conn, 3)
    before = [status(conn, job) for job in (other, nobodys)]
    app = seen_by(database_url, Identity("anna", tenant="mine"))
    for method, path in OF_A_JOB:
        for job in (other, nobodys):
            answer = send(app, method, path.format(job=job, item=0))
            assert answer.status_code == 404, (method, path)
        answer = send(app, method, path.format(job=mine, item=0))
        assert answer.status_code != 404, (method, path)
    assert [status(conn, job) for job in (other, nobodys)] == before

    assert [job["id"] for job in send(app, "GET", "/api/jobs").json()["jobs"]] == [mine]
    assert [job["id"] for job in send(app, "GET", "/api/jobs?tenant=mine").json()["jobs"]] == [mine]
    for query in ("tenant=other", "q=tenant:other", f"q=name:{other}", "q=is:stalled"):
        assert send(app, "GET", f"/api/jobs?{query}").json() == {"jobs": [], "next": None}
    assert send(app, "GET", "/api/workers").status_code == 403


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"name": ""}, ValueError), ({"name": 5}, TypeError), ({"name": "a", "tenant": ""}, ValueError),
        ({"name": "a", "tenant": 5}, TypeError), ({"name": "a", "scopes": "read"}, ValueError),
        ({"name": "a", "scopes": ["write"]}, ValueError), ({"name": "a\x00"}, ValueError),
    ],
)  # fmt: skip
def test_an_identity_that_says_nothing_clear_is_refused(
    given: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Identity(**given)
