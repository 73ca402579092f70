"""Who may look, and what a browser may do with what it gets."""

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

#: Gives who asks, or None for nobody; a plain function runs in a thread.
Authenticate: TypeAlias = Callable[[Request], Any | Awaitable[Any]]

#: Served to anybody: probes have no credentials, and the static files hold nothing of anybody's.
OPEN = ("/healthz", "/readyz", "/static/")

#: What changes nothing.
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
    """Asks `authenticate` about each request, and adds the headers to each answer."""

    def __init__(
        self, app: ASGIApp, authenticate: Authenticate | None = None, hosts: Sequence[str] | None = None
    ) -> None:
        self.app = app
        self.authenticate = authenticate
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer: ASGIApp = self.app
        if not self._meant(scope):
            answer = Problem(421, "this app is not known by that name: start it with --allow-host NAME")
        elif _foreign(scope):
            answer = Problem(403, "this was sent by a page of another site, which may not act here")
        elif not await self._admits(scope, receive):
            answer = Problem(
                401, "this needs credentials that this app knows", {"WWW-Authenticate": "Bearer"}
            )
        await answer(scope, receive, _adding(send))

    def _meant(self, scope: Scope) -> bool:
        name = Headers(scope=scope).get("host", "")
        return self.hosts is None or re.sub(r":\d+$", "", name).lower() in self.hosts

    async def _admits(self, scope: Scope, receive: Receive) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self.authenticate is None or path.startswith(OPEN):
            return True
        request = Request(scope, receive)
        if inspect.iscoroutinefunction(self.authenticate):
            who = await self.authenticate(request)
        else:
            who = await run_in_threadpool(self.authenticate, request)
        # A callable object or a lambda may still hand back something to wait for.
        request.state.who = await who if inspect.isawaitable(who) else who
        return request.state.who is not None


def _foreign(scope: Scope) -> bool:
    """Whether a page of another site would act in the name of who looks at it. Browsers say where a request is from."""
    if scope["method"] in SAFE:
        return False
    headers = Headers(scope=scope)
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _adding(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            # What is shown is of this moment, and another's tomorrow.
            headers.setdefault("Cache-Control", "no-cache" if "etag" in headers else "no-store")
        await send(message)

    return sent
