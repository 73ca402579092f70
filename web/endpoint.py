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


#: JSON Lines: the handler reads such a body.
LINES = "application/x-ndjson"


class NoBody(msgspec.Struct, forbid_unknown_fields=True):
    """No body, or an empty object."""


@dataclass(frozen=True, slots=True)
class Call(Generic[Q, B]):
    """A request that may be answered: its sender was asked for, and its parameters are checked.

    `job`: the id in the path, a job that the sender may see; 0 where the path has none.
    """

    request: Request
    job: int
    who: Identity
    query: Q
    body: B
    #: Of an endpoint that reads `together`: the connection that is in its transaction.
    conn: AsyncConn | None = None

    @property
    def tenant(self) -> str | None:
        """The only tenant whose jobs the sender may see; None: all. A handler of several jobs asks for those alone."""
        return self.who.tenant

    async def read(self, query: Query[T]) -> T:
        """Run a query on the app's database."""
        if self.conn is not None:
            return await arun(self.conn, query)
        answer: T = await self.request.app.state.database.read(query)
        return answer

    async def find_job(self, number: int) -> dict[str, Any]:
        """The job as the API describes it. Raises HTTPException 404 when there is none with this id."""
        found = await self.read(queries.job(number))
        if found is None:
            raise HTTPException(404, f"there is no job {number}")
        return found

    async def write(self, write: Callable[[Conn], T]) -> T:
        """Run a change of the app's database. Raises HTTPException 422 for nonsense, and NoSuchJob and NotPossible."""
        try:
            answer: T = await self.request.app.state.database.write(write)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return answer

    @property
    def requester(self) -> Requester:
        """The author of a change, for the history: the name that the login gave, or else the sender's address."""
        address = self.request.client.host if self.request.client else None
        who = address or "" if self.who is access.EVERYONE else self.who.name
        return Requester("http", who, self.tenant, address)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with a status and headers of its own. `content`: as other handlers return it."""

    content: Any
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path below the API's prefix.

    - `answer`: the type of what the handler returns; None: it returns a Response. `query`, `body`: what it takes.
    - `scope`: what the sender's login must allow.
    - `for_all_tenants`: its answer is shared by all tenants, so a sender who sees only one is refused.
    - `replays`: a request that is repeated by its key is answered with 200.
    - `shared`: a token to look at the one job in the path admits, too.
    - `together`: its handler only reads, several times, and does so in one transaction, which spares round trips.
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
    #: The types of its body, and those of its answer if that is not the JSON of `answer`.
    consumes: tuple[str, ...] = ("application/json",)
    produces: tuple[str, ...] = ()
    #: The problems that it may answer with beside those of its kind, by their statuses: see `openapi`.
    problems: Mapping[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the OpenAPI document."""
        return f"{self.handler.__module__.rpartition('.')[2]}.{self.handler.__name__}"

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return self.method == "GET"

    def __post_init__(self) -> None:
        if self.shared and "{job}" not in self.path:
            raise ValueError(f"{self.path} can't be shared: a token to look at one job is checked by {{job}}")

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
        """The body; None for lines, which the handler reads as they come. Raises Refused for one that is packed."""
        if packing := request.headers.get("content-encoding"):
            detail = f"the body must not be packed, and its Content-Encoding is {packing[:40]}: send it as it is"
            raise parameters.Refused(415, detail, code="media_type")
        if parameters.media_type(request) == LINES and LINES in self.consumes:
            return None
        return await parameters.body(request, self.body, self.consumes)


class EndpointsOfPath:
    """ASGI app of the endpoints of one path, by their methods. Raises HTTPException 405 for another method, with all of
    theirs in `Allow`: a route for each method would name only those of the first.
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
    """The routes of endpoints: one for each path."""
    of_path: dict[str, dict[str, Endpoint]] = {}
    for one in endpoints:
        of_path.setdefault(one.path, {})[one.method] = one
    # `{` sorts behind letters, so /jobs/counts comes before /jobs/{job}, which would take it for an id.
    return [Route(path, EndpointsOfPath(of_path[path])) for path in sorted(of_path)]


def _conditional(request: Request, answer: Response) -> Response:
    """The answer with its ETag, or a 304 if the sender has it already."""
    tag = etag(bytes(answer.body))
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if known == ["*"] or tag.removeprefix("W/") in known:
        return Response(status_code=304, headers=headers)
    answer.headers.update(headers)
    return answer


def etag(body: bytes) -> str:
    """The ETag of an answer; it is weak, since the body may be sent packed."""
    return f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
