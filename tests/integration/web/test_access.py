"""Whom the login of the app that mounts Callboard lets in, and what they see and change."""

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import UnauthenticatedUser
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from callboard import Identity
from callboard.web import create_app
from tests.support.webapp import get


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
    assert "return callboard.Identity(name) to admit the" in caplog.text


def test_an_answer_of_the_login_is_sent_as_it_is(database_url: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"{"
        yield b"}"

    problem = "application/problem+json"
    for said, body in (
        (RedirectResponse("/login"), b""),
        (Response("<form action=/login>", 403, media_type="text/html"), b"<form action=/login>"),
        (Response("{}", 403, media_type=problem), b"{}"),
        (StreamingResponse(parts(), 403, media_type=problem), b"{}"),
    ):
        (answer,) = get(seen_by(database_url, said), "/", headers={"Accept": "text/html"})
        assert (answer.status_code, answer.content) == (said.status_code, body)
        assert answer.headers.get("location") == said.headers.get("location")
        assert answer.headers.get("content-type") == said.headers.get("content-type")
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


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"name": ""}, ValueError), ({"name": 5}, TypeError), ({"name": "a", "tenant": ""}, ValueError),
        ({"name": "a", "tenant": 5}, TypeError), ({"name": "a", "scopes": "read"}, ValueError),
        ({"name": "a", "scopes": ["write"]}, ValueError), ({"name": "a\x00"}, ValueError),
        ({"name": "a", "job": "1"}, TypeError),
    ],
)  # fmt: skip
def test_an_identity_that_says_nothing_clear_is_refused(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Identity(**given)
