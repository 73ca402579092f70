"""The types of the API's answers: endpoints convert to them, and the OpenAPI document describes them."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from callboard.sql.states import AttemptKind, ItemState, JobState, Scope, WorkerState

#: A time in UTC.
Time: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
#: The start of the next page: the value for `after` of the next request.
Cursor: TypeAlias = Annotated[str | None, msgspec.Meta(description="`after` of the next page; null on the last page")]
#: An array of any values. The explicit schema gives generated clients a type for it.
Anything: TypeAlias = Annotated[list[Any], msgspec.Meta(extra_json_schema={"items": {}})]
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON object in an answer of the API."""


class Hung(Answer):
    """An item that may hang, and the line of code at which it hangs."""

    item: Count
    seconds: float
    worker: int
    place: str | None
    job: int | None = None


class Counts(Answer):
    """Items by state; they add up to `total`."""

    total: Count
    pending: Count
    queued: Count
    running: Count
    retrying: Count
    succeeded: Count
    failed: Count
    skipped: Count
    cancelled: Count


class Stage(Counts):
    """A summary of a stage. The stage is itself a job, with the id `job`."""

    job: int
    stage: Count
    name: str
    actor: str | None
    state: JobState
    stopping: JobState | None
    reason: str | None
    sealed: bool
    retries: Count
    crashes: Count
    progress: Share
    step: str | None
    started_at: Time | None
    finished_at: Time | None
    on_failure: Literal["stop", "go on"]


class Job(Answer):
    """A job: a set of items of one actor, or of stages."""

    id: int
    name: str
    key: str | None
    tenant: str
    actor: str | None
    state: JobState
    stopping: JobState | None
    reason: str | None
    standing: bool
    sealed: bool
    open: Annotated[bool, msgspec.Meta(description="it takes more items until somebody seals it")]
    consumed: Annotated[int, msgspec.Meta(ge=0, description="inputs read; an interrupted submission continues there")]
    total: Count
    pending: Count
    queued: Count
    running: Count
    retrying: Count
    succeeded: Count
    failed: Count
    skipped: Count
    cancelled: Count
    retries: Count
    crashes: Count
    unkept: Count
    progress: Share
    rate: Annotated[float | None, msgspec.Meta(description="items per second")]
    eta: Time | None
    stalled: Annotated[str | None, msgspec.Meta(description="why the job does not move")]
    stalled_until: Annotated[
        Time | None,
        msgspec.Meta(description="when `stalled` ends by itself: the end of a delay, a rate, a retry or a hold"),
    ]
    step: str | None
    hung: list[Hung]
    stages: list[Stage]
    parent: int | None
    stage: Count | None
    limits: dict[str, Any]
    metadata: dict[str, Any]
    created_by: str | None
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    updated_at: Time


class Trial(Answer):
    """The number of items that a `dry_run` would change."""

    items: Count


class Refusal(Answer):
    """A job to which the action was not applied, and why."""

    job: int
    detail: str


class BulkAction(Answer):
    """The numbers of jobs and items that an action changed, and at most 100 of the jobs that it did not change."""

    action: str
    dry_run: bool
    jobs: Count
    items: Count
    refused: Count
    refusals: list[Refusal]
    next: Annotated[str | None, msgspec.Meta(description="`after` of the request that continues; null: all is done")]


class JobCounts(Answer):
    """The numbers of jobs in each view of the list; `all` is the sum of `open` and `ended`."""

    open: Annotated[int, msgspec.Meta(description="`is:open`")]
    stalled: Annotated[int, msgspec.Meta(description="`is:stalled`")]
    failed_today: Annotated[int, msgspec.Meta(description="`is:failing ended:24h`")]
    ended: Annotated[int, msgspec.Meta(description="`is:ended`")]
    all: Count


class Progress(Answer):
    """The progress of an item in flight, as its actor reports it."""

    done: float
    total: float | None


class ItemError(Answer):
    """The error of the last attempt of an item that did not succeed."""

    kind: AttemptKind
    type: str | None
    message: str | None
    place: str | None


class Item(Answer):
    """An item of a job. Arguments and results that are too long or not JSON are texts, in `args_text` and
    `result_text`.
    """

    job: int
    item: Count
    key: str | None
    actor: str | None
    state: ItemState
    attempt: Annotated[int, msgspec.Meta(ge=1)]
    crashes: Count
    step: str | None
    stack: str | None
    worker: int | None
    args: Anything | None
    kwargs: dict[str, Any] | None
    args_text: str | None
    result: Any
    result_text: str | None
    result_unkept: str | None
    progress: Progress | None
    error: ItemError | None
    sent_at: Annotated[Time | None, msgspec.Meta(description="set for plain sends and for messages that an item sent")]
    due_at: Time | None
    first_started_at: Time | None
    started_at: Time | None
    finished_at: Time | None


class Attempt(Answer):
    """An attempt of an item. A plain success has none."""

    attempt: Annotated[int, msgspec.Meta(ge=1)]
    kind: AttemptKind
    retried: bool
    worker: int | None
    started_at: Time | None
    ended_at: Time
    type: str | None
    place: str | None
    message: str | None
    traceback: str | None
    traceback_size: Annotated[int | None, msgspec.Meta(description="characters, before it was cut")]


class ItemWithAttempts(Item):
    """An item of a job, with its attempts, except a plain success."""

    attempts: list[Attempt]


class ErrorGroup(Answer):
    """The attempts of a job that failed with the same kind, type, place, and pattern of the message."""

    id: str
    job: int
    stage: Count | None
    kind: AttemptKind
    type: str | None
    place: str | None
    pattern: str | None
    count: Count
    failed: Annotated[int, msgspec.Meta(description="attempts that ended their item")]
    retried: Count
    first_at: Time
    last_at: Time
    item: Annotated[int, msgspec.Meta(description="the item that `message` comes from")]
    message: str | None


class ErrorWithTraceback(ErrorGroup):
    """An error group with the traceback of its example, if that is stored."""

    attempt: Annotated[int | None, msgspec.Meta(description="the attempt of `item` that `traceback` comes from")]
    traceback: str | None
    traceback_size: Annotated[int | None, msgspec.Meta(description="characters, before it was cut")]


class Action(Answer):
    """An action on a job, from its history."""

    id: int
    done_at: Time
    action: str
    who: str
    via: str
    address: Annotated[str | None, msgspec.Meta(description="address of the HTTP client")]
    detail: dict[str, Any]


class Point(Answer):
    """The progress of a job at one time."""

    at: Time
    ended: Count
    failed: Count
    rate: Annotated[float, msgspec.Meta(description="items per second since the previous point")]


class Samples(Answer):
    """The progress of a job over time, and its actions, the oldest first."""

    points: list[Point]
    marks: list[Action]


class Lane(Answer):
    """The items of a job with the same value of an argument."""

    lane: Annotated[str, msgspec.Meta(description="the value as JSON, or its digest; empty: without that argument")]
    in_flight: Count
    width: Count
    waiting: Annotated[int, msgspec.Meta(description="items that wait for room in the lane; at most 1,000 are counted")]


class Drift(Answer):
    """A number of a job that differs from its rows."""

    job: int
    name: str
    check: str
    stored: int
    counted: int


class Recount(Answer):
    """The checks of a job's numbers, and those that differ."""

    jobs: Annotated[int, msgspec.Meta(description="the job and its stages")]
    checks: dict[str, str]
    drift: list[Drift]


class Callback(Answer):
    """A callback for one end of a job."""

    id: str
    on: JobState
    target: str
    state: Literal["waiting", "delivered", "gave up"]
    tries: Count
    error: str | None
    created_at: Time
    due_at: Time | None
    finished_at: Time | None


class Worker(Answer):
    """A worker process."""

    id: int
    host: str
    pid: int
    threads: int
    release: str
    held: Annotated[int, msgspec.Meta(description="items running or prefetched")]
    actors: list[str]
    queues: list[str]
    started_at: Time
    beat_at: Time
    state: WorkerState
    trouble: Annotated[str | None, msgspec.Meta(description="what keeps it from publishing")]
    ended_at: Time | None


class Queue(Answer):
    """A queue of RabbitMQ. A number is null if it is unknown: AMQP does not report unacknowledged messages."""

    name: str
    actors: list[str]
    unserved: Annotated[list[str], msgspec.Meta(description="actors of the queue that no worker has")]
    pending: Annotated[int, msgspec.Meta(description="items of open jobs that wait as rows")]
    ready: Count | None
    unacknowledged: Count | None
    delayed: Annotated[int | None, msgspec.Meta(description="delayed messages of other programs")]
    dead: Annotated[int | None, msgspec.Meta(description="dead letters")]
    consumers: Count | None


class Queues(Answer):
    """The queues of all known actors and open jobs."""

    queues: list[Queue]
    trouble: Annotated[str | None, msgspec.Meta(description="why RabbitMQ's numbers are missing")]
    next: Cursor


class DeadLetter(Answer):
    """A message in a dead-letter queue, and the error of its item."""

    message_id: str | None
    actor: str | None
    job: int | None
    item: int | None
    reason: Annotated[str | None, msgspec.Meta(description="RabbitMQ's reason, such as `rejected`")]
    error: str | None
    died_at: Time | None
    body: Annotated[str, msgspec.Meta(description="the first part of its body")]


class Moved(Answer):
    """The number of dead letters that were moved back, and the number that is left."""

    put_back: Count
    left: Count


class Token(Answer):
    """A token that gives access. A session is a logged-in browser; a share token reads one job."""

    id: int
    kind: Literal["api", "link", "session", "share"]
    name: str
    tenant: str | None
    scopes: list[Scope]
    job: int | None
    created_at: Time
    created_by: str
    expires_at: Time | None
    used_at: Annotated[Time | None, msgspec.Meta(description="to the minute")]


class MadeToken(Token):
    """A new token with its secret, which is not shown again."""

    token: str


def _page(name: str, about: str, **rows: Any) -> type[msgspec.Struct]:
    """Return the type of one page of a list: its rows, and the start of the next page."""
    fields = [*rows.items(), ("next", Cursor)]
    return msgspec.defstruct(name, fields, bases=(Answer,), namespace={"__doc__": about}, kw_only=True)


Jobs = _page("Jobs", "A page of jobs.", jobs=list[Job])
Items = _page("Items", "A page of items.", items=list[Item])
Errors = _page("Errors", "The error groups of a job.", errors=list[ErrorGroup])
Actions = _page("Actions", "A page of a job's history, the latest action first.", actions=list[Action])
Lanes = _page("Lanes", "Lanes of a job, at most 50.", lanes=list[Lane])
Callbacks = _page("Callbacks", "The callbacks of a job, those of its latest end first.", callbacks=list[Callback])
Workers = _page("Workers", "A page of worker processes, the latest first.", workers=list[Worker])
DeadLetters = _page("DeadLetters", "The oldest dead letters of a queue.", dead_letters=list[DeadLetter])
Tokens = _page("Tokens", "A page of tokens, the latest first.", tokens=list[Token])
