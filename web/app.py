"""The web app: its routes, its middleware, and its database."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from callboard.sql.settings import NotConfigured
from callboard.web import actions, api, health, pages
from callboard.web.access import AccessControl, Authenticate
from callboard.web.database import Database
from callboard.web.problems import HANDLERS

ROUTES = [
    Route("/", pages.board),
    Route("/jobs/{job}", pages.job),
    Mount("/static", pages.static),
    Route("/api/jobs", api.jobs),
    Route("/api/jobs/{job}", api.job),
    Route("/api/jobs/{job}", actions.limit, methods=["PATCH"]),
    Route("/api/jobs/{job}", actions.delete, methods=["DELETE"]),
    Route("/api/jobs/{job}/items", api.items),
    Route("/api/jobs/{job}/items/{item}", api.item),
    Route("/api/jobs/{job}/errors", api.errors),
    Route("/api/jobs/{job}/actions", api.actions),
    Route("/api/jobs/{job}/callbacks", api.callbacks),
    Route("/api/jobs/{job}/cancel", actions.cancel, methods=["POST"]),
    Route("/api/jobs/{job}/pause", actions.pause, methods=["POST"]),
    Route("/api/jobs/{job}/resume", actions.resume, methods=["POST"]),
    Route("/api/jobs/{job}/retry", actions.retry, methods=["POST"]),
    Route("/api/workers", api.workers),
    Route("/healthz", health.healthz),
    Route("/readyz", health.readyz),
]


def create_app(
    *, url: str | None = None, authenticate: Authenticate | None = None, hosts: Sequence[str] | None = None
) -> Starlette:
    """An app for the database at `url` (None: DATABASE_URL, read at the first request).

    `authenticate(request)`, async or not, returns the `callboard.Identity` of who sends the request, None for nobody
    (the answer is 401), or a Response, which is sent; an HTTPException that it raises is answered as such. Anything
    else lets nobody in and is answered with 500. /healthz, /readyz and /static need no login. `hosts` are the host
    names that the app answers to (None: any); without a login they keep other sites' pages from reading it through a
    browser on its machine. The app may be mounted in another one, whose lifespan does not run this one's: it opens
    its pool at the first request.
    """
    database = Database(url)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        with suppress(NotConfigured):
            await database.pool()
        yield
        await database.close()

    access = Middleware(AccessControl, authenticate=authenticate, hosts=hosts)
    app = Starlette(routes=ROUTES, middleware=[access], exception_handlers=HANDLERS, lifespan=lifespan)
    app.state.database = database
    return app
