"""Decides who may use the web app, and what a browser may do with its answers."""

import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias
from urllib.parse import unquote_plus

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from callboard.identity import Identity
from callboard.sql.reads import queries
from callboard.sql.states import SCOPES
from callboard.web import parameters
from callboard.web.login import QUERY, TokenLogin
from callboard.web.problems import BROKEN, HANDLED, Problem, problem_of, refused

log = logging.getLogger("callboard.web")

#: The answer of a login: the identity of the sender, None (the answer is 401), or the answer itself.
Admission: TypeAlias = Identity | Response | None
#: The login. A plain function runs in a thread.
Authenticate: TypeAlias = Callable[[Request], Admission | Awaitable[Admission]]

#: Paths that need no login: probes have no credentials, static files hold no data, and the login page asks for it.
OPEN = ("/healthz", "/readyz", "/login", "/logout")
#: The identity of every sender in an app that is open to everyone; an identity without any rights.
EVERYONE, NOBODY = Identity("everyone", scopes=SCOPES), Identity("nobody", scopes=())

#: Keys of the request's scope: the identity of the sender, the function that finds it, the headers of the answer.
IDENTITY, ADMIT, ADDED = "callboard.identity", "callboard.admit", "callboard.headers"
WRONG_LOGIN_TYPE = "the login of this app returned a value of a wrong type; the server's log says what to return"
NO_LOGIN = "this needs valid credentials for this app"
UNKNOWN_SENDER = (
    "this needs a valid token: send the header `Authorization: Bearer cb_…`. A refused token is "
    "mistyped, revoked or expired; `callboard token create` makes another"
)
UNKNOWN_SHARE = "the token in this address is mistyped, revoked or expired; ask for another one"
LOGIN_ENDED = "this login is no longer valid: it was revoked, changed, or has expired"

#: Methods that change nothing.
SAFE = ("GET", "HEAD", "OPTIONS")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: The headers of an answer that any site may read: a shared job for its token, and static files.
SHARED = {**HEADERS, "Cross-Origin-Resource-Policy": "cross-origin", "Access-Control-Allow-Origin": "*"}
#: The policy of a page that a page of any site may show within it.
EMBEDDED = {
    "Content-Security-Policy": HEADERS["Content-Security-Policy"].replace("frame-ancestors 'none'", "frame-ancestors *")
}


class AccessControl:
    """ASGI middleware that refuses a request by its host name, its origin or its login, and adds headers to answers."""

    def __init__(
        self, app: ASGIApp, login: TokenLogin | None, authenticate: Authenticate | None, hosts: Sequence[str] | None
    ) -> None:
        """`authenticate` replaces `login`, which then only checks tokens that share a job. Without both the app is open
        to everyone.
        """
        self.app = app
        self.login = login
        self.authenticate = authenticate
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        share = _pop_share_token(scope)
        scope[ADDED] = self._added(scope, share)
        answer = self._refusal(scope) or await self._ask(Request(scope, receive), share) or self.app
        # An answer of the other app's login has that app's headers.
        foreign = self.authenticate is not None and isinstance(answer, Response)
        if not foreign or isinstance(answer, Problem):
            send = _with_headers(send, scope[ADDED])
        await answer(scope, receive, send)

    def _added(self, scope: Scope, share: str | None) -> dict[str, str]:
        path = parameters.path_within(Request(scope))
        shared = path.startswith("/static/") or not (share is None or self.login is None)
        headers = SHARED if shared else HEADERS
        return headers | EMBEDDED if path.startswith("/embed/") else headers

    def _refusal(self, scope: Scope) -> Problem | None:
        if not self._knows_host(scope):
            return Problem(421, "this app does not accept this host name: start it with --allow-host NAME")
        if _cross_site(scope):
            return Problem(
                403,
                "this request came from a page of another site, which may not change anything; if it was a page of "
                "this app, let its proxy pass on the header Host",
            )
        return None

    async def _ask(self, request: Request, share: str | None) -> Response | None:
        """Find the identity of the sender and store it in the scope; return None, or the answer that refuses the
        sender.
        """
        if _is_open(request):
            return None
        own = share is not None or self.authenticate is None
        admit = request.scope[ADMIT] = partial(self._admit, share=share)
        try:
            found = await admit(request)
        except HANDLED as error:
            if not own:
                raise
            return await problem_of(request, error)
        if found is None:
            detail = UNKNOWN_SHARE if share is not None else UNKNOWN_SENDER if own else NO_LOGIN
            return Problem(401, detail, {"WWW-Authenticate": "Bearer"})
        if isinstance(found, Response):
            return found
        request.scope[IDENTITY] = found
        return None

    async def _admit(self, request: Request, share: str | None) -> Admission:
        """Return the identity by the token in the query if there is one, else by the login."""
        if self.login is None:
            return EVERYONE
        if share is not None:
            return await self.login.find(share, QUERY)
        if self.authenticate is None:
            return await self.login.authenticate(request)
        return await _admission(self.authenticate, request)

    def _knows_host(self, scope: Scope) -> bool:
        host = Headers(scope=scope).get("host", "")
        return self.hosts is None or re.sub(r":\d+$", "", host).lower() in self.hosts


def identity(request: Request) -> Identity:
    """Return the identity of the sender. Raises HTTPException 401 on a path without login, where it is unknown."""
    found = request.scope.get(IDENTITY)
    if not isinstance(found, Identity):
        raise HTTPException(401, UNKNOWN_SENDER, {"WWW-Authenticate": "Bearer"})
    return found


async def is_still_admitted(request: Request) -> bool:
    """Return whether the login still admits the sender with the same identity: a stream checks this repeatedly."""
    found = await request.scope[ADMIT](request)
    return bool(found == identity(request))


async def job(request: Request) -> int:
    """Return the id of the job in the path. Raises HTTPException 404 for a job that the sender may not see.

    Every handler of a job gets its id here.
    """
    number, who = parameters.path_number(request, "job", parameters.IDS, "job"), identity(request)
    is_hidden = who.job not in (None, number) or (
        who.tenant is not None and not await request.app.state.database.read(queries.is_of_tenant(number, who.tenant))
    )
    if is_hidden:
        raise HTTPException(404, f"there is no job {number}")
    return number


def check_scope(request: Request, scope: str, *, for_all_tenants: bool, shared: bool) -> None:
    """Raise HTTPException 403 for a login without the scope; for a login of one tenant if the answer is for all
    tenants; and for a login of one job unless the endpoint is `shared`.
    """
    who = identity(request)
    if scope not in who.scopes:
        raise HTTPException(403, f"this needs the scope {scope}, which this login does not have")
    if for_all_tenants and who.tenant is not None:
        raise HTTPException(403, "this needs a login for all tenants, and this login is for one tenant")
    if not shared and who.job is not None:
        raise HTTPException(403, f"this login shows job {who.job} and nothing else")


async def _admission(authenticate: Authenticate, request: Request) -> Admission:
    """Call the app's own login. A value of another type than `Admission` is an error and refuses the sender."""
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
        "authenticate() returned a %s, so the request was refused: return callboard.Identity(name) to admit the "
        "sender, None to refuse it, or a Response to answer with",
        type(found).__qualname__,
    )
    return Problem(500, WRONG_LOGIN_TYPE)


async def broken(request: Request, _error: Exception) -> Problem:
    """Answer an unexpected error. Starlette calls this outside of all middleware, so it adds the headers itself."""
    return Problem(500, BROKEN, {**request.scope[ADDED], "Cache-Control": "no-store"})


def _is_open(request: Request) -> bool:
    path = parameters.path_within(request)
    return path in OPEN or path.startswith("/static/")


def _pop_share_token(scope: Scope) -> str | None:
    """Remove the share token from the query of the request and return it; None if there is none."""
    parts = scope.get("query_string", b"").split(b"&")
    given = [part for part in parts if part.startswith(b"token=")]
    if not given:
        return None
    scope["query_string"] = b"&".join(part for part in parts if part not in given)
    return unquote_plus(given[-1].removeprefix(b"token=").decode("latin-1"))


def _cross_site(scope: Scope) -> bool:
    """Return whether a page of another site sent a request that changes something, by the headers of the browser."""
    if scope["method"] in SAFE:
        return False
    headers = Headers(scope=scope)
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _with_headers(send: Send, added: Mapping[str, str]) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in added.items():
                headers.setdefault(name, value)
            # Answers are outdated within a second. A static file has an ETag, with which a browser revalidates it.
            headers.setdefault("Cache-Control", "no-cache" if "etag" in headers else "no-store")
        await send(message)

    return sent
