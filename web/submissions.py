"""Endpoints that create jobs and add items."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, BinaryIO

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from callboard.middleware.submission import item_encoding, json_lines
from callboard.middleware.submission import submission as submissions
from callboard.middleware.submission.actor_lookup import UnknownActor
from callboard.middleware.submission.item_encoding import BadItem, Lane, Row
from callboard.middleware.submission.json_lines import BadLine
from callboard.sql.limits import Limits
from callboard.sql.reads import queries
from callboard.sql.signature import Signature
from callboard.sql.writes import actions
from callboard.sql.writes import submission as writes
from callboard.sql.writes.requests import note_action
from callboard.sql.writes.run_again import Again
from callboard.sql.writes.run_again import run_again as run_again_
from callboard.sql.writes.submission import KeyInUse
from callboard.web import new_job, parameters
from callboard.web.actions import LimitChanges
from callboard.web.answers import Anything, Count
from callboard.web.endpoint import Call, NoBody, Reply
from callboard.web.new_job import NewJob, wrong
from callboard.web.parameters import NoQuery, Refused

#: Maximum number of bad items that a problem lists; it only counts the others.
NAMED_BAD_ITEMS = 10
#: Maximum number of items that one request adds to an open job, and bytes of their arguments: one transaction stores #:
#: them.
ADDED_ITEMS, ADDED_BYTES = 10_000, 4 * 2**20
#: Seconds after which a client may retry if its key is being submitted.
RETRY_SECONDS = "5"


class NewItems(msgspec.Struct, forbid_unknown_fields=True):
    """Items to add to a job."""

    items: Anything


class AddQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Options of an addition of items."""

    start: Annotated[
        Count | None, msgspec.Meta(description="the expected `consumed` of the job: a repeated request adds nothing")
    ] = None
    item_key: Annotated[str | None, msgspec.Meta(description="the `item_key` of the job")] = None


class BadItems(BadItem):
    """Items that can't be stored. `named`: the number and the error of the first ones; `count`: of all."""

    def __init__(self, noun: str, named: list[tuple[int, str]], count: int) -> None:
        more = f" and {count - len(named):,} more" if count > len(named) else ""
        super().__init__(f"{'; '.join(why for _, why in named)}{more}")
        self.noun = noun
        self.named = named

    def refused(self) -> Refused:
        """Return the API's answer."""
        of_lines = self.noun == "line"
        where = {"line": "#/line", "item": "#/items"}[self.noun]
        return Refused(
            422, f"nothing was stored: {self}; correct this, or pass skip_bad", code="bad_items",
            errors=[{"pointer": f"{where}/{number}", "detail": why} for number, why in self.named],
            line=self.named[0][0] if of_lines else None,
        )  # fmt: skip


async def submit(call: Call[NoQuery, NewJob | None]) -> Reply:
    """Submit a job.

    The body is the job with its items; or any number of lines of JSON: the first line is the job, each further line an
    item. No item starts before all items are stored. If an item is invalid, nothing is stored. With a key (or the
    header `Idempotency-Key`) an interrupted submission continues when it is sent again.
    """
    submitter = call.request.app.state.submitter
    with _refusals():
        if call.body is None:
            job, status = await submitter.read(call.tenant, call.request.stream(), partial(_store_lines, call))
        else:
            items = enumerate(call.body.first_items or ())
            job, status = await submitter.run(partial(_store, call, call.body, items, "item"))
    return Reply(await call.find_job(job), status, {"Location": location(call.request, job)})


async def add(call: Call[AddQuery, NewItems | None]) -> dict[str, Any]:
    """Add items to a job that is open for more.

    All of them are stored, or none: at most 10,000 items and 4 MiB. In a body of lines each line is an item. With
    `start` they are only added if the job's `consumed` has this value, so a request whose answer was lost can be
    repeated.
    """
    submitter = call.request.app.state.submitter
    with _refusals():
        if call.body is None:
            await submitter.read(call.tenant, call.request.stream(), partial(_add_lines, call))
        else:
            await submitter.run(partial(_add, call, enumerate(call.body.items), "item"))
    return await call.find_job(call.job)


async def seal(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """Seal a job: it takes no more items, and completes with its present items."""
    await call.write(lambda conn: actions.seal(conn, call.job, call.requester))
    return await call.find_job(call.job)


class RunAgain(LimitChanges):
    """Which items to run again (`states`: their final states), and the options that differ from the old job."""

    states: list[str] | None = None
    name: str | None = None
    key: str | None = None
    metadata: dict[str, Any] | None = None


async def run_again(call: Call[NoQuery, RunAgain]) -> Reply:
    """Make a new job of the items of a finished job: all items, or those in some states.

    The database copies the items, and none starts before all are copied. Options that are not given are those of the
    old job, except `at` and `deadline`.
    """
    given = msgspec.to_builtins(call.body)
    options = {name: given.pop(name, None) for name in ("states", "name", "key", "metadata")}
    options["key"] = _key(call.request, call.body.key)
    submitter = call.request.app.state.submitter
    with _refusals():
        again = Again(**options, limits=given)
        job, new = await submitter.run(partial(run_again_, submitter.process.write, call.job, call.requester, again))
    status = 201 if new else 200
    return Reply(await call.find_job(job), status, {"Location": location(call.request, job)})


def _add_lines(call: Call[AddQuery, Any], source: BinaryIO) -> None:
    _add(call, json_lines.values(json_lines.lines(source)), "line")


def _add(call: Call[AddQuery, Any], items: Iterable[tuple[int, Any]], noun: str) -> None:
    process = call.request.app.state.submitter.process
    found = process.write(lambda conn: queries.run(conn, queries.job(call.job)))
    actor = found["actor"] if found else None
    known = process.write(lambda conn: writes.known_actor(conn, actor)) if actor else None
    item_key, start = call.query.item_key, call.query.start
    signature = known[1] if known else None
    by = Limits.from_json(found["limits"]).lane_by if found else None
    lane = Lane(by, signature) if by else None
    rows, size = list[Row](), 0
    for row in _encoded(items, item_key, signature, noun, [], lane=lane):
        rows.append(row)
        size += len(row[0])
        if len(rows) > ADDED_ITEMS or size > ADDED_BYTES:
            most = f"{ADDED_ITEMS:,} items and {ADDED_BYTES // 2**20} MiB"
            raise Refused(413, f"one request may add at most {most}: send these in parts", code="too_large")
    process.write(
        lambda conn: writes.add_items(conn, call.job, call.requester, rows, keyed=item_key is not None, start=start)
    )


def location(request: Request, job: int) -> str:
    """Return the URL of a job, with the prefix of the request."""
    return f"{request.scope['root_path']}/jobs/{job}"


def _store_lines(call: Call[NoQuery, Any], source: BinaryIO) -> tuple[int, int]:
    lines = json_lines.lines(source)
    number, head = next(((number, line) for number, line in lines if line.strip()), (1, b""))
    if len(head) > parameters.BODY_BYTES:
        raise Refused(413, f"line {number} is larger than {parameters.BODY_BYTES} bytes", code="too_large", line=number)
    try:
        job = parameters.decode(head or b"{}", NewJob)
    except Refused as error:
        error.line = number
        raise
    if job.first_items is not None:
        raise wrong("items", "must not be given here: each line after the first is an item")
    return _store(call, job, json_lines.values(lines), "line")


def _store(call: Call[NoQuery, Any], given: NewJob, items: Iterable[tuple[int, Any]], noun: str) -> tuple[int, int]:
    """Store a job with its items; return its id and the status: 201, or 200 if the job already exists."""
    submitter = call.request.app.state.submitter
    key = _key(call.request, given.key)
    new = new_job.make(call, submitter.process.write, given, key)
    made = new.submitted
    if made.elsewhere:
        busy = f"job {new.job} with this key is being submitted: retry when that submission has ended"
        raise HTTPException(409, busy, {"Retry-After": RETRY_SECONDS})
    left_out: list[tuple[int, str]] = []
    rows = _encoded(items, given.item_key, new.signature, noun, left_out, lane=new.lane, skip_bad=given.skip_bad)
    submission = submissions.Submission(
        submitter.process.write, submitter.lease, _publish_nothing, made, key, keyed=given.item_key is not None,
        open=given.open,
    )  # fmt: skip
    if not submission.store(rows):
        return new.job, 200
    detail = {"left_out": [why for _, why in left_out]} if left_out else {}
    submitter.process.write(lambda conn: note_action(conn, new.job, call.requester, "submit", detail))
    return new.job, 201


def _publish_nothing(_job: int) -> None:
    """Publish nothing: the web app has no broker, so workers publish the job."""


def _encoded(
    items: Iterable[tuple[int, Any]], item_key: str | None, signature: Signature | None, noun: str,
    named: list[tuple[int, str]], *, lane: Lane | None, skip_bad: bool = False,
) -> Iterator[Row]:  # fmt: skip
    """Yield the encoded items, and append the first invalid ones to `named`. With `skip_bad` invalid items are skipped.
    Otherwise no item is yielded after the first invalid one, and BadItems is raised at the end.
    """
    count = 0
    for number, item in items:
        try:
            if isinstance(item, BadLine):
                raise BadItem(str(item))  # noqa: TRY301 — handled like an error of `encode`
            row = item_encoding.encode(number, item, item_key, signature, noun, lane=lane)
        except BadItem as error:
            count += 1
            if len(named) < NAMED_BAD_ITEMS:
                named.append((number, str(error)))
        else:
            if skip_bad or not count:
                yield row
    if count and not skip_bad:
        raise BadItems(noun, named, count)


def _key(request: Request, key: str | None) -> str | None:
    headers = request.headers.getlist("idempotency-key")
    if not headers:
        return key
    if len(headers) > 1:
        raise parameters.wrong("Idempotency-Key", "is given twice")
    try:
        header = headers[0].encode("latin-1").decode()  # Starlette reads headers as Latin-1
    except UnicodeDecodeError:
        raise parameters.wrong("Idempotency-Key", "must be in UTF-8") from None
    given = header.removeprefix('"').removesuffix('"')
    if not given or key not in (None, given):
        raise wrong("key", "must be a text, and the same in the body and in the header Idempotency-Key")
    return given


@contextmanager
def _refusals() -> Iterator[None]:
    """Convert the errors of a submission in its block to HTTPExceptions."""
    try:
        yield
    except BadItems as error:
        raise error.refused() from None
    except (UnknownActor, KeyInUse) as error:
        field, code = ("actor", "unknown_actor") if isinstance(error, UnknownActor) else ("key", "key_in_use")
        parts = [{"pointer": f"#/{field}", "detail": str(error)}]
        raise Refused(422, str(error), code=code, errors=parts) from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the body was complete: send it again") from None
    except ValueError as error:
        field = str(error).partition(" ")[0].rstrip(":")
        if field in NewJob.__struct_fields__:
            raise wrong(field, str(error).removeprefix(field).lstrip(": ")) from None
        raise HTTPException(422, str(error)) from None
