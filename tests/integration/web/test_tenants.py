"""Every route asks whose job it is, and what the sender's login allows: all are walked, and one that asks not is found.

A new endpoint is walked by itself. Give BODIES a body that it accepts, and `Scene.path` what its path names.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from callboard import Identity
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.states import SCOPES
from callboard.sql.writes import actions, tokens
from callboard.sql.writes.requests import Requester
from callboard.web import create_app
from callboard.web.endpoint import Call, Endpoint, EndpointsOfPath, NoBody, routes_of
from callboard.web.pages.page import PageEndpoint
from callboard.web.parameters import NoQuery
from tests.support.databases import database, with_database
from tests.support.jobs import make_mixed_job
from tests.support.webapp import TYPE, served

#: What stands in texts of the other tenant's job, and of no other.
MARK = "secret-of-the-other"
#: Routes that are no endpoints: they have no data of jobs.
PLAIN = {"/healthz", "/readyz", "/login", "/logout", "/static"}
#: Bodies that endpoints accept which need one; {other} is the id of the other tenant's job.
BODIES: dict[str, Any] = {
    "POST /jobs": {"actor": "work", "items": [1]},
    "POST /jobs/{job}/items": {"items": [1]},
    "PATCH /jobs/{job}": {"rate": None},
    "POST /tokens": {"name": "ci"},
    "POST /jobs/actions": {"action": "pause", "filter": {"state": ["running"]}},
    "POST /worse": {"job": "{other}"},
}
#: Likewise, fields of forms.
FORMS: dict[str, Any] = {
    "POST /tokens": {"name": "ci"},
    "POST /jobs/actions": {"what": "pause", "all": "true", "q": "state:running"},
}
#: Paths whose POST changes nothing: a recount takes long, so that no browser may ask for it ahead.
READ_BY_POST = {"/jobs/{job}/verify", "/jobs/{job}/recount"}
#: Statuses by which an endpoint accepts a request in form: the job may be in a state in which it makes no sense.
ACCEPTED = {200, 201, 202, 204, 303, 409}


@dataclass(frozen=True)
class Scene:
    """A database with a job of each of two tenants, and an app that takes a sender for whom its header says."""

    conn: Conn
    url: str
    mine: int
    other: int

    def app(self, *more: Endpoint | Route) -> Starlette:
        app = create_app(url=self.url, authenticate=authenticate)
        app.routes.extend(routes_of(one for one in more if isinstance(one, Endpoint)))
        app.routes.extend(one for one in more if isinstance(one, Route))
        return app

    def path(self, path: str, job: int) -> str:
        """A path with what it names: of the job, where it may be; anything unknown is the job's id."""
        groups = queries.run(self.conn, queries.errors(self.mine))
        known = {"item": 20, "error": groups[0]["id"], "token": 1, "queue": "default"}
        return re.sub(r"\{(\w+)\}", lambda found: str(known.get(found[1], job)), path)

    def content(self, job: int, tenant: str) -> list[Any]:
        """All rows of a job, and all rows that are of its tenant."""
        found = self.conn.execute(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'callboard' AND column_name IN ('job_id', 'tenant') ORDER BY 1, 2"
        )
        parts = [("jobs", "id", job), *((*row, job if row[1] == "job_id" else tenant) for row in found)]
        rows = "SELECT array_agg(t::text ORDER BY t::text) FROM callboard.{} AS t WHERE {} = %s"
        return [
            self.conn.execute(rows.format(table, column).encode(), (value,)).fetchone()
            for table, column, value in parts
        ]


def authenticate(request: Request) -> Identity:
    said = request.headers["x-who"]
    return msgspec.convert(msgspec.json.decode(said), Identity)


def who(**given: Any) -> dict[str, str]:
    return {"X-Who": msgspec.json.encode({"name": "anna", "scopes": SCOPES, **given}).decode()}


@pytest.fixture(scope="module")
def url(postgres_url: str, template: str) -> Iterator[str]:
    """The database that the tests here share."""
    with database(postgres_url, template) as name:
        yield with_database(postgres_url, name)


@pytest.fixture
def scene(url: str) -> Iterator[Scene]:
    by = Requester("cli", MARK)
    with connect(url) as conn:
        mine = make_mixed_job(conn, name="my job", tenant="mine")
        other = make_mixed_job(conn, name=MARK, tenant="other")
        actions.pause(conn, other, by)
        tokens.create(conn, by, name=MARK, tenant="other", scopes=SCOPES)
        yield Scene(conn, url, mine, other)


def routes(app: Starlette) -> Iterator[tuple[str, Endpoint | None]]:
    """The endpoints of every route of an app with its path; None: it has none. /api has those of /api/v1."""
    for route in app.routes:
        if isinstance(route, Mount) and route.path == "/api/v1":
            for one in route.routes:
                assert isinstance(one, Route)
                yield from ((f"/api/v1{one.path}", endpoint) for endpoint in _endpoints(one))
        elif isinstance(route, Mount):
            if route.path != "/api":
                yield route.path, None
        else:
            assert isinstance(route, Route)
            yield from ((route.path, endpoint) for endpoint in _endpoints(route))


def _endpoints(route: Route) -> Sequence[Endpoint | None]:
    return list(route.app.endpoints.values()) if isinstance(route.app, EndpointsOfPath) else [None]


def sent(
    client: httpx.Client, scene: Scene, path: str, one: Endpoint, headers: dict[str, str], job: int, **more: str
) -> tuple[int, str]:
    """Send a request in good form, with these fields; return its status and its text, of a stream the beginning."""
    is_form = isinstance(one, PageEndpoint)
    body = (FORMS if is_form else BODIES).get(f"{one.method} {one.path}", {}) | ({} if one.reads else more)
    text = msgspec.json.encode(body).decode().replace('"{other}"', str(scene.other))
    kind = "application/x-www-form-urlencoded" if is_form else "application/json"
    request = client.build_request(
        one.method,
        scene.path(path, job),
        params=more if one.reads else {},
        content=None if one.reads else urlencode(body) if is_form else text,
        headers={"Content-Type": kind, **headers},
    )
    said = ""
    answer = client.send(request, stream=True)
    try:
        for part in answer.iter_text():
            said += part
            if answer.headers.get("content-type") == TYPE and said.count("\n\n") > 1:
                break
    finally:
        answer.close()
    return answer.status_code, said


def leaks(scene: Scene, app: Starlette) -> list[str]:
    """What lets a sender of the tenant `mine` see or change a job of the tenant `other`, or was not tried."""
    found = list[str]()
    with served(app) as address, httpx.Client(base_url=address, timeout=300) as client:
        for path, one in routes(app):
            if one is not None:
                found += leaks_of(client, scene, path, one)
            elif path not in PLAIN:
                found.append(f"{path} is no endpoint")
    return found


def leaks_of(client: httpx.Client, scene: Scene, path: str, one: Endpoint) -> Iterator[str]:
    name, me, before = f"{one.method} {path}", who(tenant="mine"), scene.content(scene.other, "other")
    status, text = sent(client, scene, path, one, me, scene.other)
    shown = text
    if "tenant" in {*one.query.__struct_fields__, *one.body.__struct_fields__}:
        shown += sent(client, scene, path, one, me, scene.other, tenant="other")[1]
    if MARK in shown or str(scene.other) in shown.replace(f"there is no job {scene.other}", ""):
        yield f"{name} shows the other's"
    if scene.content(scene.other, "other") != before:
        yield f"{name} changes the other's"
    if one.for_all_tenants or "{job}" in path:
        if status != (403 if one.for_all_tenants else 404):
            yield f"{name} answers {status} for the other's"
    elif status not in ACCEPTED | ({404} if "{" in path else set()):
        yield f"{name} answers {status}: {text[:200]}; give BODIES a body that it accepts"


async def shows_all(call: Call[NoQuery, NoBody]) -> Response:
    return JSONResponse((await call.read(queries.jobs()))[0])


async def shows_one(call: Call[NoQuery, NoBody]) -> Response:
    return JSONResponse(await call.find_job(int(call.request.path_params["number"])))


class AnyJob(msgspec.Struct):
    job: int


async def pauses_any(call: Call[NoQuery, AnyJob]) -> Response:
    await call.write(lambda conn: actions.resume(conn, call.body.job, Requester("http", "anna")))
    return Response(status_code=204)


async def plain(request: Request) -> Response:
    return JSONResponse({})


def test_of_all_routes_only_those_show_or_change_the_job_of_another_tenant_that_do_not_ask_whose_it_is(
    scene: Scene,
) -> None:
    """Of each kind one is added here, and found. No other is."""
    added: list[Endpoint | Route] = [
        Endpoint("GET", "/worse", shows_all, None), Endpoint("GET", "/worse/{number}", shows_one, None),
        Endpoint("POST", "/worse", pauses_any, None, body=AnyJob), Route("/worst", plain),
    ]  # fmt: skip
    assert leaks(scene, scene.app(*added)) == [
        "GET /worse shows the other's", "POST /worse changes the other's", "GET /worse/{number} shows the other's",
        "/worst is no endpoint",
    ]  # fmt: skip


def test_every_endpoint_asks_for_its_scope_before_anything_else(scene: Scene) -> None:
    app = scene.app()
    before = scene.content(scene.mine, "mine")
    with served(app) as address, httpx.Client(base_url=address, timeout=300) as client:
        for path, one in routes(app):
            if one is not None:
                others = who(scopes=[scope for scope in SCOPES if scope != one.scope])
                status, text = sent(client, scene, path, one, others, scene.mine)
                assert (status, f"the scope {one.scope}" in text) == (403, True), (one.method, path)
                assert one.reads or one.scope != "read" or one.path in READ_BY_POST, path
    assert scene.content(scene.mine, "mine") == before


def test_who_is_shared_one_job_sees_it_and_nothing_else(scene: Scene) -> None:
    app, shared = scene.app(), set()
    shown = who(job=scene.mine, scopes=["read"])
    with served(app) as address, httpx.Client(base_url=address, timeout=300) as client:
        for path, one in routes(app):
            if one is None:
                continue
            own, _ = sent(client, scene, path, one, shown, scene.mine)
            others, text = sent(client, scene, path, one, shown, scene.other)
            assert MARK not in text, path
            assert (own, others) == ((200, 404) if one.shared else (403, 403)), (one.method, path)
            shared |= {f"{one.method} {path}"} if one.shared else set()
    assert shared >= {"GET /api/v1/jobs/{job}", "GET /api/v1/jobs/{job}/events"}
    assert all(name.startswith("GET ") for name in shared)
