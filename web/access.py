"""Who may use the web app, and what a browser may do with its answers."""

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from callboard.web.problems import Problem

#: Returns who sends the request, or None for nobody. A plain function runs in a thread.
Authenticate: TypeAlias = Callable[[Request], Any | Awaitable[Any]]

#: Paths that need no login: probes have no credentials, and the static files hold no data.
OPEN = ("/healthz", "/readyz", "/static/")

#: Methods that change nothing.
SAFE = ("GET", "HEAD", "OPTIONS")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AccessControl:
    """ASGI middleware that refuses a request by its host name, its origin or its login, and adds headers to answers."""

    def __init__(
        self, app: ASGIApp, authenticate: Authenticate | None = None, hosts: Sequence[str] | None = None
    ) -> None:
        self.app = app
        self.authenticate = authenticate
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer: ASGIApp = self.app
        if not self._knows_host(scope):
            answer = Problem(
                421, "this app does not answer to that host name: start it with --allow-host NAME"
            )
        elif _cross_site(scope):
            answer = Problem(
                403, "a page of another site sent this request, and may not change anything here"
            )
        elif not await self._authenticated(scope, receive):
            answer = Problem(
                401, "this needs credentials that this app knows", {"WWW-Authenticate": "Bearer"}
            )
        await answer(scope, receive, _with_headers(send))

    def _knows_host(self, scope: Scope) -> bool:
        host = Headers(scope=scope).get("host", "")
        return self.hosts is None or re.sub(r":\d+$", "", host).lower() in self.hosts

    async def _authenticated(self, scope: Scope, receive: Receive) -> bool:
        """Whether the request may pass; the one who sends it is kept as `request.state.who`."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self.authenticate is None or path.startswith(OPEN):
            return True
        request = Request(scope, receive)
        if inspect.iscoroutinefunction(self.authenticate):
            who = await self.authenticate(request)
        else:
            who = await run_in_threadpool(self.authenticate, request)
        # A lambda or an object with an async __call__ returns an awaitable too.
        request.state.who = await who if inspect.isawaitable(who) else who
        return request.state.who is not None


def _cross_site(scope: Scope) -> bool:
    """Whether a page of another site sends a request that changes something: browsers say where a request is from."""
    if scope["method"] in SAFE:
        return False
    headers = Headers(scope=scope)
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            # Answers go out of date within a second. A static file has an ETag, by which a browser asks again.
            headers.setdefault("Cache-Control", "no-cache" if "etag" in headers else "no-store")
        await send(message)

    return sent
