"""A job as a request describes it, and the creation of its rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec

from callboard.middleware.submission import actor_lookup, stage_plan
from callboard.middleware.submission import submission as submissions
from callboard.middleware.submission.actor_lookup import UnknownActor
from callboard.middleware.submission.item_encoding import Lane
from callboard.sql import rows
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn
from callboard.sql.signature import Signature
from callboard.sql.writes import stages, submission
from callboard.web.answers import Anything
from callboard.web.endpoint import Call
from callboard.web.parameters import Refused

#: A function that runs a write on a connection.
Write = Callable[[Callable[[Conn], Any]], Any]
Callbacks = str | list[str] | None
Items = Annotated[
    Anything | None, msgspec.Meta(description="an object: keyword arguments; an array: arguments; else: one argument")
]
Chunk = Annotated[
    int | None, msgspec.Meta(description="maximum number of items in one message; null: by the actor's mean duration")
]


class NewStage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A stage, as `callboard.Stage`. `make`: the path of a function, "module:name"; it needs a login for all tenants
    with the scope `admin`.
    """

    actor: str
    items: Items = None
    make: str | None = None
    name: str | None = None
    on_failure: Literal["stop", "go on"] = "stop"
    chunk: Chunk = None


class NewJob(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A job to submit: the options of `callboard.submit`; or, with `stages`, those of `callboard.stages`."""

    actor: str | None = None
    items: Items = None
    stages: Annotated[list[NewStage], msgspec.Meta(min_length=1, max_length=100)] | None = None
    name: str | None = None
    key: str | None = None
    key_reuse: bool = False
    item_key: str | None = None
    metadata: dict[str, Any] = {}
    tenant: str | None = None
    priority: int = 0
    chunk: Chunk = None
    max_failures: int | str | None = None
    concurrency: int | None = None
    concurrency_by: str | dict[str, int] | None = None
    lanes: int | None = None
    rate: str | None = None
    delay: str | None = None
    at: str | None = None
    deadline: str | None = None
    keep: str | None = None
    on_complete: Callbacks = None
    on_fail: Callbacks = None
    on_cancel: Callbacks = None
    skip_bad: Annotated[bool, msgspec.Meta(description="skip invalid items")] = False
    open: Annotated[bool, msgspec.Meta(description="the job takes more items until it is sealed")] = False

    @property
    def first_items(self) -> list[Any] | None:
        """The items in the body: those of the job, or of its first stage."""
        return self.items if self.stages is None else self.stages[0].items


@dataclass(frozen=True, slots=True)
class Made:
    """A job that was made, or found by its key; the submission of its items, or of those of its first stage; the
    signature of their actor, None if unknown; and the argument that sets an item's lane, None for stages.
    """

    job: int
    submitted: rows.SubmittedJob
    signature: Signature | None
    lane: Lane | None = None


def make(call: Call[Any, Any], write: Write, given: NewJob, key: str | None) -> Made:
    """Create the rows of a job, without items. Raises Refused, UnknownActor, KeyInUse; ValueError for bad values."""
    limits = _limits(given)
    options = {
        "key": key, "tenant": _tenant(call, given.tenant), "metadata": given.metadata,
        "created_by": call.requester.who or None, "limits": limits, "key_reuse": given.key_reuse, "held": True,
        "alone": True,
        "targets": actor_lookup.targets(write, None, given.on_complete, given.on_fail, given.on_cancel),
    }  # fmt: skip
    return (_make_job if given.stages is None else _make_stages)(call, write, given, options)


def _make_job(_call: Call[Any, Any], write: Write, given: NewJob, options: dict[str, Any]) -> Made:
    actor = given.actor
    if actor is None:
        raise wrong("actor", "must be the name of an actor")
    submissions.check_chunk(given.chunk)
    queue, signature = _known(write, actor)
    by = options["limits"].lane_by
    lane = Lane(by, signature) if by else None
    if lane is not None:
        lane.check()
    asked = {"open": True} if given.open else {}
    with submissions.submitting(actor, queue) as trace:
        made = write(
            lambda conn: submission.create_job(
                conn, name=actor if given.name is None else given.name, actor=actor, queue=queue, chunk=given.chunk,
                also_asked=asked, trace=trace, **options,
            )
        )  # fmt: skip
    return Made(made.job, made, signature, lane)


def _make_stages(call: Call[Any, Any], write: Write, given: NewJob, options: dict[str, Any]) -> Made:
    name, given_stages = _checked_stages(call, given)
    planned, signatures = [], []
    for stage in given_stages:
        queue, signature = _known(write, stage.actor)
        signatures.append(signature)
        makes = None if stage.make is None else stage_plan.check_path(stage.make)
        submissions.check_chunk(stage.chunk)
        title = stage.actor if stage.name is None else stage.name
        planned.append(rows.PlannedStage(title, stage.actor, queue, makes, stage.on_failure, stage.chunk))
    if options["limits"].lane_by:
        stage_plan.check_lane(signatures, options["limits"].lane_by)
    with submissions.submitting(planned[0].actor, planned[0].queue) as trace:
        parent, found = write(lambda conn: stages.create(conn, planned, name=name, trace=trace, **options))
    return Made(parent, replace(found[0].submitted, held=True), signatures[0])


def _checked_stages(call: Call[Any, Any], given: NewJob) -> tuple[str, list[NewStage]]:
    """Return the name of a job of stages, and its stages. Raises Refused for fields that such a job does not have, and
    for a `make` that the login may not use.
    """
    others = {"actor": None, "items": None, "item_key": None, "chunk": None, "open": False}
    for field, nothing in others.items():
        if getattr(given, field) != nothing:
            raise wrong(field, "must not be given for a job of stages")
    if given.name is None:
        raise wrong("name", "must be given for a job of stages")
    found = given.stages or []
    later = found[1:]
    if found[0].make is not None or any(stage.items is not None for stage in later):
        raise wrong("stages", "must have items in the first stage only, and no make in it")
    if any(stage.make is not None for stage in later) and ("admin" not in call.who.scopes or call.tenant is not None):
        detail = (
            "make names code that workers of all tenants run: this needs the scope admin and a login for all tenants"
        )
        raise Refused(403, detail, code="scope")
    return given.name, found


def _known(write: Write, actor: str) -> tuple[str, Signature | None]:
    known: tuple[str, Signature | None] | None = write(lambda conn: submission.known_actor(conn, actor))
    if known is None:
        raise UnknownActor(f"no actor {actor!r}: start a worker that has it")
    return known


def _limits(given: NewJob) -> Limits:
    start = submissions.start(given.delay, given.at)
    return Limits(
        given.max_failures, given.concurrency, given.rate, given.priority, given.deadline, start, given.keep,
        given.concurrency_by, given.lanes,
    )  # fmt: skip


def _tenant(call: Call[Any, Any], given: str | None) -> str:
    if call.tenant is not None and given not in (None, call.tenant):
        raise Refused(403, "this login submits for its own tenant only: omit tenant", code="tenant")
    return call.tenant or given or ""


def wrong(field: str, why: str) -> Refused:
    """Return the error for an invalid field."""
    return Refused(422, f"{field} {why}", code="field", errors=[{"pointer": f"#/{field}", "detail": why}])
