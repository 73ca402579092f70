"""Who may use the web app, and what a browser may do with its answers."""

import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from callboard.identity import Identity
from callboard.sql.reads import queries
from callboard.web import parameters
from callboard.web.problems import Problem, refused

log = logging.getLogger("callboard.web")

#: What a login gives: who sends the request, nobody (the answer is 401), or the answer itself.
Admission: TypeAlias = Identity | Response | None
#: The login. A plain function runs in a thread.
Authenticate: TypeAlias = Callable[[Request], Admission | Awaitable[Admission]]

#: Paths that need no login: probes have no credentials, and the static files hold no data.
OPEN = ("/healthz", "/readyz", "/static/")

#: The key of the request's scope under which the identity of its sender is kept.
IDENTITY = "callboard.identity"
#: Likewise the login that gave it.
LOGIN = "callboard.login"
MISTAKEN = (
    "the login of this app gave an answer that Callboard does not take; the server's log says what to return"
)

NO_LOGIN = "this needs credentials that this app knows"

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
        elif self.authenticate is not None and not _is_open(scope):
            request = Request(scope, receive)
            found = await _admission(self.authenticate, request)
            if isinstance(found, Response):  # of another app: its headers are its own
                await found(scope, receive, send)
                return
            scope[IDENTITY], scope[LOGIN] = found, self.authenticate
            if found is None:
                answer = Problem(401, NO_LOGIN, {"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, _with_headers(send))

    def _knows_host(self, scope: Scope) -> bool:
        host = Headers(scope=scope).get("host", "")
        return self.hosts is None or re.sub(r":\d+$", "", host).lower() in self.hosts


def identity(request: Request) -> Identity | None:
    """Who sends the request; None where the app has no login."""
    return request.scope.get(IDENTITY)


async def is_still_admitted(request: Request) -> bool:
    """Whether the login admits the sender as it did at first: for an answer that goes on."""
    login = request.scope.get(LOGIN)
    return login is None or await _admission(login, request) == identity(request)


def tenant(request: Request) -> str | None:
    """The only tenant whose jobs the request may concern; None: it may concern every job."""
    who = identity(request)
    return None if who is None else who.tenant


async def job(request: Request) -> int:
    """The id of the job in the path. Raises HTTPException 404 for a job of a tenant that the sender is not of.

    Every handler of a job gets its id here.
    """
    number, only = parameters.path_number(request, "job", parameters.IDS, "job"), tenant(request)
    if only is not None and not await request.app.state.database.read(queries.is_of_tenant(number, only)):
        raise HTTPException(404, f"there is no job {number}")
    return number


def check_scope(request: Request, scope: str, *, for_all_tenants: bool) -> None:
    """Raise HTTPException 403 for a sender whose login does not allow this, or who sees one tenant where the answer is
    for who sees all.
    """
    who = identity(request)
    if who is None:
        return
    if scope not in who.scopes:
        raise HTTPException(403, f"this needs the scope {scope}, which this login does not have")
    if for_all_tenants and who.tenant is not None:
        raise HTTPException(403, "this is shared by all tenants, and this login sees the jobs of one")


async def _admission(authenticate: Authenticate, request: Request) -> Admission:
    """Ask the login. What is neither an identity, nor None, nor an answer admits nobody."""
    try:
        if inspect.iscoroutinefunction(authenticate):
            found = await authenticate(request)
        else:
            found = await run_in_threadpool(authenticate, request)
        if inspect.isawaitable(found):  # of a lambda, or of an object with an async __call__
            found = await found
    except HTTPException as error:
        return await refused(request, error)
    if found is None or isinstance(found, (Identity, Response)):
        return found
    log.error(
        "authenticate() returned a %s, so the request was refused: return callboard.Identity(name) to let somebody in, "
        "None to let nobody in, or a Response to answer with",
        type(found).__qualname__,
    )  # fmt: skip
    return Problem(500, MISTAKEN)


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.startswith(OPEN)


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
