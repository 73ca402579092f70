"""The app's own login: tokens for programs, and a page that opens a session for browsers."""

import asyncio
import re
import time
from contextlib import suppress
from urllib.parse import quote

import psycopg
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from callboard.identity import Identity
from callboard.sql.reads import queries
from callboard.sql.writes import tokens
from callboard.web import parameters
from callboard.web.database import Database
from callboard.web.templating import JINJA

#: Seconds for which a valid token is cached: a revoked token is accepted for so long.
KNOWN_SECONDS = 2.0
#: Maximum number of cached tokens.
KNOWN_TOKENS = 1_000
#: Maximum number of characters of a secret, and of the page to open after the login.
SECRET_CHARACTERS, NEXT_CHARACTERS = 100, 1_000
#: The kinds of token that are accepted in the header, in the cookie, and in the query.
HEADER, COOKIE, QUERY = ("api", "share"), ("session",), ("share",)

LINK_USED = "This link was already used, or has expired. Ask for another one."
NOT_VALID = "This token is not valid: it is mistyped, revoked or expired."
SESSION_ENDED = "The login of this browser was revoked, or has expired."


class TokenLogin:
    """Finds the sender of a request by its token. Valid tokens are cached for KNOWN_SECONDS, so most requests need no
    query for the login.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[tuple[bytes, tuple[str, ...]], tuple[float, Identity]] = {}
        self._noting: dict[int, asyncio.Task[None]] = {}

    async def authenticate(self, request: Request) -> Identity | Response | None:
        """Return the identity by the bearer token or the cookie of a request; else a redirect to the login for a
        browser, or None.
        """
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return await self.find(secret.strip(), HEADER)
        return await self.find(request.cookies.get(cookie(request), ""), COOKIE) or _to_login(request)

    async def find(self, secret: str, kinds: tuple[str, ...]) -> Identity | None:
        """Return the identity of a secret of one of these kinds; None if it is not valid."""
        if not secret.startswith(tokens.PREFIX) or len(secret) > SECRET_CHARACTERS:
            return None
        key = (tokens.digest(secret), kinds)
        until, who = self._known.get(key, (0.0, None))
        now = time.monotonic()  # before the query, which may take a while
        if who is not None and now < until:
            return who
        found = await self._database.read(queries.token(*key))
        self._known.pop(key, None)
        if found is None:
            return None
        if found["unnoted"]:
            self._note_use(found["id"])
        who = Identity(found["name"], found["tenant"], found["scopes"], found["job"])
        if len(self._known) >= KNOWN_TOKENS:
            self._known.clear()
        self._known[key] = (now + KNOWN_SECONDS, who)
        return who

    def forget(self) -> None:
        """Empty the cache of tokens."""
        self._known.clear()

    def _note_use(self, number: int) -> None:
        """Record the use of a token in the background: no request waits for this or fails because of it."""

        async def note() -> None:
            try:
                with suppress(psycopg.Error):
                    await self._database.write(lambda conn: tokens.note_use(conn, number))
            finally:
                self._noting.pop(number, None)

        if number not in self._noting:
            self._noting[number] = asyncio.create_task(note())


def cookie(request: Request) -> str:
    """Return the name of the session's cookie. It has port and prefix: browsers keep cookies by host name only."""
    port = re.search(r":(\d+)$", request.headers.get("host", ""))
    return re.sub(r"\W+", "_", f"callboard {port[1] if port else ''}{request.scope.get('root_path', '')}").strip("_")


def _to_login(request: Request) -> Response | None:
    """Return a redirect to the login for a browser that asks for a page, with the way back; None for other requests."""
    path = parameters.path_within(request)
    if request.method not in ("GET", "HEAD") or "text/html" not in request.headers.get("accept", ""):
        return None
    if path.startswith("/api/"):
        return None
    wanted = path.lstrip("/") + (f"?{request.url.query}" if request.url.query else "")
    # Relative, because a proxy may have stripped a prefix.
    login = "../" * (path.count("/") - 1) + "login"
    if 0 < len(wanted) <= NEXT_CHARACTERS:
        login += f"?next={quote(wanted, safe='')}"
    return RedirectResponse(login, 303)


async def login(request: Request) -> Response:
    """GET, POST /login: ask for a token, and open a session with it or with the secret of a link."""
    own: TokenLogin = request.app.state.login
    given = dict(await parameters.form(request) if request.method == "POST" else request.query_params)
    link, secret, wanted = given.get("link", ""), given.get("token", "").strip(), given.get("next", "")
    if request.method != "POST" and await own.find(request.cookies.get(cookie(request), ""), COOKIE):
        return _to_page(wanted)
    if request.method != "POST" and not (link and _is_opened_by_person(request)):
        return _page(wanted, link=link, over=cookie(request) in request.cookies)
    opened = await request.app.state.database.write(lambda conn: tokens.log_in(conn, link or secret))
    if opened is None:
        return _page(wanted, wrong=LINK_USED if link else NOT_VALID)
    session, seconds = opened
    answer = _to_page(wanted)
    answer.set_cookie(
        cookie(request),
        session,
        max_age=int(seconds),
        path=request.scope.get("root_path") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
    return answer


async def logout(request: Request) -> Response:
    """POST /logout: end the session of this browser."""
    if session := request.cookies.get(cookie(request)):
        await request.app.state.database.write(lambda conn: tokens.log_out(conn, session))
        request.app.state.login.forget()
    answer = RedirectResponse("login", 303)
    answer.delete_cookie(cookie(request), path=request.scope.get("root_path") or "/", httponly=True)
    return answer


def _is_opened_by_person(request: Request) -> bool:
    """Return whether a person opened this address, not a link preview, a prefetching browser or another site's page.
    These get a page with a button, so that they do not use up the link.
    """
    headers = request.headers
    navigated = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-site")) == ("navigate", "none")
    return request.method == "GET" and navigated and "sec-purpose" not in headers


def _to_page(wanted: str) -> Response:
    """Return a redirect to the wanted page. The prefix `./` keeps any text within this site."""
    return RedirectResponse(f"./{wanted[:NEXT_CHARACTERS].lstrip('/')}", 303)


def _page(wanted: str, *, link: str = "", wrong: str = "", over: bool = False) -> Response:
    error = wrong or (SESSION_ENDED if over else "")
    text = JINJA.get_template("login.html").render(next=wanted[:NEXT_CHARACTERS], link=link, wrong=error)
    return HTMLResponse(text, 401 if wrong else 200, {"WWW-Authenticate": "Bearer"} if wrong else None)


#: Routes without login, for an app with its own login.
ROUTES = [Route("/login", login, methods=["GET", "POST"]), Route("/logout", logout, methods=["POST"])]
