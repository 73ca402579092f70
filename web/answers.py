"""The types of the API's answers: endpoints convert to them, and the OpenAPI document describes them."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from callboard.sql.states import AttemptKind, ItemState, JobState, Scope, WorkerState

#: A time in UTC.
Time: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
#: The start of the next page: a text to give back as `after`.
Cursor: TypeAlias = Annotated[str | None, msgspec.Meta(description="`after` of the next page; null on the last page")]
#: An array of anything. To say so keeps a type that has one in generated clients.
Anything: TypeAlias = Annotated[list[Any], msgspec.Meta(extra_json_schema={"items": {}})]
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON object that the API answers."""


class Hung(Answer):
    """An item that may hang, and the line at which it does."""

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
    """A stage of a job, in short; it is a job, too, with the id `job`."""

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
    open: Annotated[bool, msgspec.Meta(description="it takes more items until it is sealed by hand")]
    consumed: Annotated[int, msgspec.Meta(ge=0, description="inputs read; a submission that broke off goes on there")]
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
    rate: Annotated[float | None, msgspec.Meta(description="items a second")]
    eta: Time | None
    stalled: Annotated[str | None, msgspec.Meta(description="why the job does not move")]
    stalled_until: Annotated[
        Time | None,
        msgspec.Meta(description="when the standstill ends by itself: the end of a delay, a rate, a retry or a hold"),
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
    """The number of items that a change would concern, if it were no `dry_run`."""

    items: Count


class Refusal(Answer):
    """A job to which something was not done, and why."""

    job: int
    detail: str


class BulkAction(Answer):
    """To how many jobs something was done, with how many items; of those to which it was not, at most a hundred."""

    action: str
    dry_run: bool
    jobs: Count
    items: Count
    refused: Count
    refusals: list[Refusal]
    next: Annotated[str | None, msgspec.Meta(description="`after` of the request that goes on; null: all is done")]


class JobCounts(Answer):
    """How many jobs there are for each view of a page; `all` is `open` and `ended`."""

    open: Annotated[int, msgspec.Meta(description="`is:open`")]
    stalled: Annotated[int, msgspec.Meta(description="`is:stalled`")]
    failed_today: Annotated[int, msgspec.Meta(description="`is:failing ended:24h`")]
    ended: Annotated[int, msgspec.Meta(description="`is:ended`")]
    all: Count


class Progress(Answer):
    """How far an item in flight is, as its actor says."""

    done: float
    total: float | None


class ItemError(Answer):
    """How the last attempt of an item ended that did not succeed."""

    kind: AttemptKind
    type: str | None
    message: str | None
    place: str | None


class Item(Answer):
    """An item of a job. Arguments and results that are too long, or no JSON, are in `args_text` and `result_text`."""

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
    sent_at: Annotated[Time | None, msgspec.Meta(description="of a plain send, and of what an item sent")]
    due_at: Time | None
    first_started_at: Time | None
    started_at: Time | None
    finished_at: Time | None


class Attempt(Answer):
    """An attempt that did not simply succeed."""

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
    """An item of a job, with its attempts except a simple success."""

    attempts: list[Attempt]


class ErrorGroup(Answer):
    """The attempts of a job that ended alike: the same kind, type, place, and pattern of the message."""

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
    item: Annotated[int, msgspec.Meta(description="the item that `message` is of")]
    message: str | None


class ErrorWithTraceback(ErrorGroup):
    """A group of errors with the traceback of its example, if that is kept."""

    attempt: Annotated[int | None, msgspec.Meta(description="the attempt of `item` that `traceback` is of")]
    traceback: str | None
    traceback_size: Annotated[int | None, msgspec.Meta(description="characters, before it was cut")]


class Action(Answer):
    """Something that was done to a job."""

    id: int
    done_at: Time
    action: str
    who: str
    via: str
    address: Annotated[str | None, msgspec.Meta(description="of the client that asked over HTTP")]
    detail: dict[str, Any]


class Point(Answer):
    """How far a job was at a time."""

    at: Time
    ended: Count
    failed: Count
    rate: Annotated[float, msgspec.Meta(description="items a second since the point before")]


class Samples(Answer):
    """How a job went over time, and what was done to it, the oldest first."""

    points: list[Point]
    marks: list[Action]


class Lane(Answer):
    """The items of a job with the same value of an argument."""

    lane: Annotated[str, msgspec.Meta(description="the value as JSON, or its digest; empty: without that argument")]
    in_flight: Count
    width: Count
    waiting: Annotated[int, msgspec.Meta(description="published when there is room; a thousand are counted")]


class Drift(Answer):
    """A number of a job that is not what its rows say."""

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
    """A callback of one end of a job."""

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
    """A queue of RabbitMQ. A number is null where nobody can tell it: AMQP doesn't tell what is unacknowledged."""

    name: str
    actors: list[str]
    unserved: Annotated[list[str], msgspec.Meta(description="its actors that no worker has")]
    pending: Annotated[int, msgspec.Meta(description="items of open jobs that wait as rows")]
    ready: Count | None
    unacknowledged: Count | None
    delayed: Annotated[int | None, msgspec.Meta(description="messages of other programs that wait for a time")]
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
    reason: Annotated[str | None, msgspec.Meta(description="RabbitMQ's word for why, as `rejected`")]
    error: str | None
    died_at: Time | None
    body: Annotated[str, msgspec.Meta(description="the beginning of its body")]


class Moved(Answer):
    """How many dead letters were put back, and how many are left."""

    put_back: Count
    left: Count


class Token(Answer):
    """A token, by which somebody is admitted. A session is a browser that is logged in; a share token reads one job."""

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
    """A token that was made just now, with its secret, which is not shown again."""

    token: str


def _page(name: str, said: str, **rows: Any) -> type[msgspec.Struct]:
    """The type of a part of a list: its rows, and the start of the next part."""
    fields = [*rows.items(), ("next", Cursor)]
    return msgspec.defstruct(name, fields, bases=(Answer,), namespace={"__doc__": said}, kw_only=True)


Jobs = _page("Jobs", "A page of jobs.", jobs=list[Job])
Items = _page("Items", "A page of items.", items=list[Item])
Errors = _page("Errors", "The errors of a job in groups.", errors=list[ErrorGroup])
Actions = _page("Actions", "A page of a job's history, the latest action first.", actions=list[Action])
Lanes = _page("Lanes", "Lanes of a job, fifty at most.", lanes=list[Lane])
Callbacks = _page(
    "Callbacks", "The callbacks of the ends of a job, those of the latest end first.", callbacks=list[Callback]
)
Workers = _page("Workers", "A page of worker processes, the latest first.", workers=list[Worker])
DeadLetters = _page("DeadLetters", "The oldest dead letters of a queue.", dead_letters=list[DeadLetter])
Tokens = _page("Tokens", "A page of tokens, the latest first.", tokens=list[Token])
