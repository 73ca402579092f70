"""The web app: its routes, its middleware, and its database."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from weakref import WeakKeyDictionary

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles

from callboard.sql.settings import NotConfigured
from callboard.web import health, login, openapi
from callboard.web.access import AccessControl, Authenticate, broken
from callboard.web.database import Database
from callboard.web.endpoint import routes_of
from callboard.web.endpoints import ENDPOINTS, METRICS
from callboard.web.pages.page import ProblemPages
from callboard.web.pages.pages import PAGES
from callboard.web.problems import HANDLERS
from callboard.web.submitter import Submitter

#: A path with an extra slash is unknown, as the OpenAPI document says: a redirect would go to the request's host name.
API = Router(routes_of((*ENDPOINTS, openapi.endpoint(ENDPOINTS, version("callboard")))), redirect_slashes=False)
ROUTES = [
    *routes_of(PAGES),
    Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
    Mount("/api/v1", API),
    Mount("/api", API),
    Route("/healthz", health.healthz),
    Route("/readyz", health.readyz),
    *routes_of((METRICS,)),
]


def create_app(
    *,
    url: str | None = None,
    authenticate: Authenticate | None = None,
    open_to_everyone: bool = False,
    hosts: Sequence[str] | None = None,
) -> Starlette:
    """An app for the database at `url` (None: DATABASE_URL, read at the first request).

    It admits senders with a token (`callboard token create`), and browsers by its login page. With `open_to_everyone`
    it admits everybody. /healthz, /readyz and /static need no login.

    `authenticate(request)`, async or not, replaces this login. It returns the `callboard.Identity` of the sender, None
    to refuse the request (the answer is 401), or a Response, which is sent. An HTTPException that it raises is the
    answer. With any other value the request is refused with 500.

    `hosts` are the host names that the app accepts (None: any). For an open app they prevent pages of other sites from
    reading it through a browser on its machine. A mounted app gets no lifespan events, so the app opens its pool at the
    first request. Raises ValueError for an app that is open and has a login, and TypeError for arguments of other
    types.
    """
    if not isinstance(open_to_everyone, bool):  # a text like "false" is truthy and would open the app
        raise TypeError(f"open_to_everyone must be True or False, not {open_to_everyone!r:.100}")
    if not (authenticate is None or callable(authenticate)):
        raise TypeError(f"authenticate must be a function, or None, not {authenticate!r:.100}")
    if isinstance(hosts, str) or not isinstance(hosts, Sequence | None):
        raise TypeError(f"hosts must be a list of host names, not {hosts!r:.100}")
    if authenticate is not None and open_to_everyone:
        raise ValueError("an app is open_to_everyone or has a login (authenticate), not both")
    database, submitter = Database(url), Submitter(url)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        with suppress(NotConfigured):
            await database.pool()
        yield
        await database.close()
        await run_in_threadpool(submitter.close)

    own = None if open_to_everyone else login.TokenLogin(database)
    access = Middleware(AccessControl, login=own, authenticate=authenticate, hosts=hosts)
    packed = Middleware(GZipMiddleware, minimum_size=1024, compresslevel=4)  # a seventh of the time of 9, the default
    app = Starlette(
        routes=ROUTES if authenticate or own is None else [*ROUTES, *login.ROUTES],
        middleware=[Middleware(ProblemPages), access, packed],
        exception_handlers={**HANDLERS, Exception: broken},
        lifespan=lifespan,
    )
    app.state.database, app.state.login, app.state.submitter = database, own, submitter
    app.state.events = WeakKeyDictionary()  # `Events` by event loop
    return app
