"""The web app: its route table, and the life of its pool."""

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
    """The app for the database at `url` (unset: DATABASE_URL, read at the first request).

    `authenticate(request)`, async or not, gives who asks (a text is noted in a job's history), or None, which is
    answered with 401; /healthz and /readyz don't ask it. `hosts`: the names it may be asked for by (None: any);
    without a login this keeps pages of others from reading it through a browser on its machine. Mounted in another
    app, which runs no lifespan but its own, it opens its pool at the first request.
    """
    database = Database(url)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        with suppress(NotConfigured):
            await database.pool()
        yield
        await database.close()

    guard = Middleware(AccessControl, authenticate=authenticate, hosts=hosts)
    app = Starlette(routes=ROUTES, middleware=[guard], exception_handlers=HANDLERS, lifespan=lifespan)
    app.state.database = database
    return app
