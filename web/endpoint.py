"""An endpoint checks the sender, the parameters and the body, calls its handler, and sends the answer."""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, request_response
from starlette.types import Receive, Scope, Send

from callboard.identity import Identity
from callboard.sql.pool import AsyncConn, Conn
from callboard.sql.reads import queries
from callboard.sql.reads.queries import Query, arun
from callboard.sql.writes.requests import Requester
from callboard.web import access, answers, parameters
from callboard.web.parameters import DryRun, NoQuery
from callboard.web.problems import Json

T = TypeVar("T")
#: The type of a call's parameters.
Q = TypeVar("Q")
#: The type of its body.
B = TypeVar("B")


#: JSON Lines: the handler itself reads such a body.
LINES = "application/x-ndjson"


class NoBody(msgspec.Struct, forbid_unknown_fields=True):
    """No body, or an empty object."""


@dataclass(frozen=True, slots=True)
class Call(Generic[Q, B]):
    """A request whose sender and parameters are checked.

    `job`: the id in the path, a job that the sender may see; 0 if the path has none.
    """

    request: Request
    job: int
    who: Identity
    query: Q
    body: B
    #: The connection with the open transaction of an endpoint that reads `together`.
    conn: AsyncConn | None = None

    @property
    def tenant(self) -> str | None:
        """The only tenant whose jobs the sender may see; None: all tenants. Handlers of several jobs filter by it."""
        return self.who.tenant

    async def read(self, query: Query[T]) -> T:
        """Run a query on the app's database."""
        if self.conn is not None:
            return await arun(self.conn, query)
        answer: T = await self.request.app.state.database.read(query)
        return answer

    async def find_job(self, number: int) -> dict[str, Any]:
        """Return the job as the API describes it. Raises HTTPException 404 if there is no job with this id."""
        found = await self.read(queries.job(number))
        if found is None:
            raise HTTPException(404, f"there is no job {number}")
        return found

    async def write(self, write: Callable[[Conn], T]) -> T:
        """Run a write on the app's database. Raises HTTPException 422 for invalid values, NoSuchJob and NotPossible."""
        try:
            answer: T = await self.request.app.state.database.write(write)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return answer

    @property
    def requester(self) -> Requester:
        """The author of a change, for the history: the name from the login, or else the sender's address."""
        address = self.request.client.host if self.request.client else None
        who = address or "" if self.who is access.EVERYONE else self.who.name
        return Requester("http", who, self.tenant, address)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with its own status and headers. `content` is the value that other handlers return directly."""

    content: Any
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path below the API's prefix.

    - `answer`: the type that the handler returns; None: a Response. `query`, `body`: the types of its input.
    - `scope`: the scope that the sender's login must have.
    - `for_all_tenants`: its answer covers all tenants, so a login of one tenant is refused.
    - `replays`: a request that is repeated with the same key is answered with 200.
    - `shared`: a share token of the job in the path gives access, too.
    - `together`: its handler runs several reads in one transaction, which saves round trips.
    """

    method: str
    path: str
    handler: Callable[[Any], Awaitable[Any]]
    answer: type[msgspec.Struct] | None
    query: type[msgspec.Struct] = NoQuery
    body: type[msgspec.Struct] = NoBody
    scope: str = "read"
    status: int = 200
    for_all_tenants: bool = False
    replays: bool = False
    shared: bool = False
    together: bool = False
    #: The media types of its body, and those of its answer if that is not the JSON of `answer`.
    consumes: tuple[str, ...] = ("application/json",)
    produces: tuple[str, ...] = ()
    #: Further problems that it may answer with, by status: see `openapi`.
    problems: Mapping[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the OpenAPI document."""
        return f"{self.handler.__module__.rpartition('.')[2]}.{self.handler.__name__}"

    @property
    def reads(self) -> bool:
        """Whether it only reads."""
        return self.method == "GET"

    def __post_init__(self) -> None:
        if self.shared and "{job}" not in self.path:
            raise ValueError(f"{self.path} can't be shared: a share token is checked against {{job}} in the path")

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        access.check_scope(request, self.scope, for_all_tenants=self.for_all_tenants, shared=self.shared)
        job = await access.job(request) if "{job}" in self.path else 0
        query = parameters.query(request, self.query)
        body = NoBody() if self.reads else await self._body(request)
        call = Call(request, job, access.identity(request), query, body)
        found = await self._handle(call)
        if isinstance(query, DryRun) and query.dry_run:
            return Json(msgspec.convert(found, answers.Trial))
        if self.answer is None:
            answer: Response = found
            return answer
        reply = found if isinstance(found, Reply) else Reply(found, self.status, {})
        answer = Json(msgspec.convert(reply.content, self.answer), reply.status, reply.headers)
        if self.reads and (following := reply.content.get("next")):
            query_of_next = request.url.include_query_params(after=following).query
            answer.headers["Link"] = f'<?{query_of_next}>; rel="next"'
        return _conditional(request, answer) if self.reads else answer

    async def _handle(self, call: Call[Any, Any]) -> Any:
        if not self.together:
            return await self.handler(call)
        return await call.request.app.state.database.read_together(lambda conn: self.handler(replace(call, conn=conn)))

    async def _body(self, request: Request) -> msgspec.Struct | None:
        """Return the decoded body; None for lines, which the handler streams. Raises Refused for a compressed body."""
        if packing := request.headers.get("content-encoding"):
            detail = f"the body must not be compressed: send it without Content-Encoding {packing[:40]}"
            raise parameters.Refused(415, detail, code="media_type")
        if parameters.media_type(request) == LINES and LINES in self.consumes:
            return None
        return await parameters.body(request, self.body, self.consumes)


class EndpointsOfPath:
    """ASGI app of the endpoints of one path, by method. Raises HTTPException 405 for other methods, with all known ones
    in `Allow`; with a route for each method, Starlette would name only the methods of the first route.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self.endpoints = endpoints
        self._apps = {method: request_response(one.serve) for method, one in endpoints.items()}
        if "GET" in self._apps:
            self._apps["HEAD"] = self._apps["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._apps.get(scope["method"])
        if app is None:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(self._apps))})
        await app(scope, receive, send)


def routes_of(endpoints: Iterable[Endpoint]) -> list[Route]:
    """Return the routes of endpoints, one for each path."""
    of_path: dict[str, dict[str, Endpoint]] = {}
    for one in endpoints:
        of_path.setdefault(one.path, {})[one.method] = one
    # `{` sorts after letters, so /jobs/counts comes before /jobs/{job}, which would take `counts` for an id.
    return [Route(path, EndpointsOfPath(of_path[path])) for path in sorted(of_path)]


def _conditional(request: Request, answer: Response) -> Response:
    """Return the answer with its ETag, or 304 if the sender already has it."""
    tag = etag(bytes(answer.body))
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if known == ["*"] or tag.removeprefix("W/") in known:
        return Response(status_code=304, headers=headers)
    answer.headers.update(headers)
    return answer


def etag(body: bytes) -> str:
    """Return the ETag of an answer; it is weak, because the body may be sent compressed."""
    return f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
