"""The rows that statements take and return."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from callboard.sql.error_patterns import pattern
from callboard.sql.signature import Signature
from callboard.sql.states import JOB_FINAL, AttemptKind

OutcomeState: TypeAlias = Literal["succeeded", "failed", "skipped", "retrying"]

# Fields that statements take as columns: see `arrays`.
BigInt: TypeAlias = Annotated[int, "bigint"]
Int: TypeAlias = Annotated[int, "int"]
Float: TypeAlias = Annotated[float, "float8"]
Bool: TypeAlias = Annotated[bool, "bool"]
Text: TypeAlias = Annotated[str, "text"]
Bytes: TypeAlias = Annotated[bytes, "bytea"]

#: About how many bytes a child has in addition to its arguments.
CHILD_BYTES = 200


class Progress(NamedTuple):
    """How much of an item is done, and the total (None: unknown)."""

    done: Float
    total: Float | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt did not succeed. `place`: file, line and function that raised; `traceback_size`: characters of the
    traceback before it was cut; `pattern`: see `error_patterns`.
    """

    kind: Annotated[AttemptKind, "callboard.attempt_kind"]
    error_type: Text
    message: Text
    place: Text = ""
    traceback: Text = ""
    traceback_size: Int = 0
    pattern: Text = field(init=False, default="")

    def __post_init__(self) -> None:
        if self.kind == "crashed":  # all crashes are in one group
            object.__setattr__(self, "pattern", self.error_type)
        elif self.kind not in ("skipped", "postponed"):  # these two are in no group of errors
            object.__setattr__(self, "pattern", pattern(self.message))


@dataclass(frozen=True, slots=True)
class Retry:
    """The next attempt: its `delay` in seconds, the encoded `options` of its message (None: the item's), and the
    timestamp of its message in milliseconds (None: the time of publishing).
    """

    delay: Float
    options: Bytes | None = None
    sent_ms: BigInt | None = None


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item of a plain send: `args` as its row stores them, see `call_bytes`; `options` as the app's encoder wrote
    them; `delay` in seconds.

    `key`: its item key, unique within the job; `published`: its message is already published.
    """

    job: BigInt
    actor: Text
    queue: Text
    message_id: Text
    args: Bytes
    options: Bytes | None
    sent_ms: BigInt
    delay: Float = 0.0
    key: Text | None = None
    published: Bool = False

    @property
    def size(self) -> int:
        """How many bytes its message has."""
        return len(self.args) + len(self.options or b"")


class Save(NamedTuple):
    """A user's own statement, with its parameters as psycopg takes them, and the `place` in the user's code. `calls`:
    it calls code that may change the session.
    """

    text: str
    params: Any
    place: str
    calls: bool = False


@dataclass(slots=True, eq=False)
class Saves:
    """The statements that an item saves with its outcome; `size` in bytes. `busy_since`: since when (monotonic) a lock
    or a slow server prevents the save, None: nothing does; `tries`: how many tries failed by that; `breaks`: the
    statements at which the connection was lost.
    """

    statements: list[Save] = field(default_factory=list)
    size: int = 0
    busy_since: float | None = None
    tries: int = 0
    breaks: list[Save] = field(default_factory=list)


@dataclass(slots=True)
class Event:
    """The outcome of an attempt. `elapsed` is its duration, `ended` the monotonic time of its end, both in seconds;
    `worker` is None if no worker could begin it.

    It is not frozen like other rows, because every message has one, and creating a frozen one takes twice the time.
    """

    job: BigInt
    item: Int
    attempt: Int
    state: Annotated[OutcomeState, "callboard.item_state"]
    elapsed: Float
    ended: Float
    worker: Int | None
    failure: Failure | None = None
    retry: Retry | None = None
    result: Text | None = None
    unkept: Text | None = None  # why its result is not kept
    children: tuple[NewItem, ...] = ()
    saves: Saves | None = None
    crashed: Bool = False
    dead: Bool = False  # its message can't be rejected, so a dead letter is written
    ran: bool = False  # it has a row in `running`

    @property
    def size(self) -> int:
        """About how many bytes are recorded."""
        size = len(self.result or "") + sum(CHILD_BYTES + child.size for child in self.children)
        if self.retry is not None:
            size += len(self.retry.options or b"")
        if self.saves is not None:
            size += self.saves.size
        return size if self.failure is None else size + len(self.failure.message) + len(self.failure.traceback)


class JobFacts(NamedTuple):
    """The app's data of a job; `metadata` as JSON. `trace`: the OpenTelemetry context of its submission, or None."""

    tenant: str
    key: str | None
    metadata: str
    trace: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class DueWork:
    """The work that is due in any process. `live`: the number of live workers; `rank`: how many of them registered
    before this process; `clock`: the database's time in seconds. By these three, workers take turns to poll.
    """

    live: int
    rank: int
    clock: float
    publish_in: float | None  # seconds until something must be published; None: nothing soon
    callbacks: bool
    stages: bool  # a job of stages is open
    controls: bool  # control states of jobs changed recently
    sweep: bool  # a sweep is due, and no process sweeps
    outdated: bool  # an applied migration breaks this code
    unknown: bool  # the worker's row is missing, or belongs to another worker


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of the process that sweeps. `anything`: whether there is work for the sweep; `clock`: the database's
    time in seconds; `set_back`: at least how many seconds its clock was set back since the lease was last taken.
    """

    anything: bool
    clock: float
    set_back: float


@dataclass(frozen=True, slots=True)
class JobControl:
    """The state of a job that workers with its items must follow."""

    job: int
    state: str
    epoch: int
    stopping: bool = False  # it will be final when its last running item has ended
    limited: bool = False  # how much it may publish next depends on the items that end
    lane_by: str | None = None  # the argument that decides an item's lane
    #: {lane that is held back: seconds from now}; "*": the whole job. None: not known.
    holds: Mapping[str, float] | None = None

    @property
    def over(self) -> bool:
        """Whether no more items of it may start."""
        return self.stopping or self.state in JOB_FINAL

    @property
    def untouched(self) -> bool:
        """Whether it was never paused, stopped or retried: then workers need not know it."""
        return not self.epoch and not self.stopping and self.state in ("pending", "running", "completed")


@dataclass(frozen=True, slots=True)
class Running:
    """An item that has run for a while; `age`: seconds since its attempt started. If it hangs: `place` is the innermost
    app code as `file:line in function`, and `stack` has the frames, innermost first.
    """

    job: BigInt
    item: Int
    attempt: Int
    age: Float
    step: Text | None
    progress: Progress | None = None
    place: Text | None = None
    stack: Text | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of a claim: the item's state and attempt, the worker that holds it, and whether it was `taken` by this
    claim. `isolate`: no worker holds it, and it must be claimed again when it runs alone.
    """

    state: str | None
    attempt: int
    crashes: int
    holder: int | None
    taken: bool
    holder_alive: bool
    isolate: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """An item that a dead worker held. `elapsed`: seconds since its attempt started; `ran`: seconds from that start to
    the worker's last heartbeat. `crash_limit`: the number of crashes at which it fails; 0: the crash is not charged to
    it; None: not decided yet.
    """

    job: int
    item: int
    attempt: int
    crashes: int
    elapsed: float
    ran: float
    crash_limit: int | None = None


@dataclass(frozen=True, slots=True)
class PublishClaim:
    """A job for which the holder of `token` may publish: bulk items up to `total`, and `in_turn` messages of the
    outbox.

    `allowed`: messages that its limits allow now (None: any). `limited`: all of its outbox messages wait for its turn.
    `chunk`: bulk items in one message (None: the publisher chooses by the actor's `mean_seconds`, None if not known,
    and by the `threads` of the workers that have the actor). `served_at`: when it was served before (None: never).
    `lane_width`: the most items in flight with the same value of the argument `lane_by`; `lanes`: the most such values;
    `applied_lane_by`: the argument that decided the lanes so far. `turn` and `seq` come from its row in `turns`: the
    queue whose messages are published, and the version of that row. `tenant` and `priority` decide when it is served.
    """

    job: int
    token: int
    watermark: int
    suspect_below: int
    total: int
    epoch: int
    actor: str
    queue: str
    in_turn: int = 0
    allowed: int | None = None
    limited: bool = False
    chunk: int | None = None
    served_at: datetime | None = None
    lane_by: str | None = None
    lane_width: int | None = None
    lanes: int | None = None
    applied_lane_by: str | None = None
    turn: str = ""
    seq: int = 0
    mean_seconds: float | None = None
    threads: int = 0
    tenant: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class DueQueue:
    """A queue with something to publish: messages of the `outbox`, or jobs `in_turn`."""

    queue: str
    outbox: bool
    in_turn: bool


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish; `dead`: as a dead letter. `outbox`: the id of its outbox row; `lease`: the lease of a plain
    send that its process publishes at once; a bulk item has neither. `standing`: its job is an actor's standing job;
    `more`: the items of a chunk after the first.
    """

    job: int
    item: int
    attempt: int
    epoch: int
    suspect: bool
    actor: str
    queue: str
    message_id: str
    args: bytes
    options: bytes | None
    sent_ms: int | None
    outbox: int | None = None
    dead: bool = False
    standing: bool = False
    lease: int | None = None
    more: tuple["Outgoing", ...] = ()


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback, claimed for try number `tries`: a webhook to `url`, or a message to `actor`. `ended`: the job's row
    when it ended, as JSON.
    """

    id: str
    job: int
    tries: int
    url: str | None
    host: str | None
    actor: str | None
    queue: str | None
    tenant: str
    ended: dict[str, Any]


class JobPage(NamedTuple):
    """The jobs with ids above `after`, up to and including `last`."""

    after: int
    last: int


ALL_JOBS = JobPage(0, 2**63 - 1)


@dataclass(frozen=True, slots=True)
class OpenJob:
    """An open job. `quiet`: it has not changed for a while; `in_flight`: some published items have not ended;
    `given_back`: a number that changes when published messages come back to be published again.
    """

    job: int
    watermark: int
    bulk_end: int
    total: int
    quiet: bool
    in_flight: bool
    given_back: int


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """The progress of a job's submission: `consumed` inputs, with the digest `digest`, are stored or were duplicates.

    `held`: nothing is published before the job is sealed. `elsewhere`: another process submits it now. `open`: it is
    submitted, and takes more items.
    """

    job: int
    state: str
    sealed: bool
    consumed: int
    digest: bytes
    held: bool = False
    elsewhere: bool = False
    open: bool = False


@dataclass(frozen=True, slots=True)
class OldJob:
    """The options with which a job was submitted."""

    name: str
    tenant: str
    actor: str | None
    queue: str | None
    metadata: dict[str, Any]
    chunk: int | None
    callbacks: dict[str, list[dict[str, str]]] | None
    limits: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage to create. `makes`: the function that makes its items, as "module:name"; None: the results of the
    previous stage are its items.
    """

    name: Text
    actor: Text
    queue: Text
    makes: Text | None
    on_failure: Text
    chunk: Int | None = None


@dataclass(frozen=True, slots=True)
class Parent:
    """A job of stages. `stopping`: its state after its stages have ended (None: it goes on)."""

    state: str
    stopping: str | None
    over: bool


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage of a job. `being_made`: a worker makes its items now; `submitting`: its items are being submitted."""

    id: int
    stage: int
    name: str
    on_failure: str
    state: str
    stopping: bool
    over: bool
    sealed: bool
    total: int
    consumed: int
    failed: int
    reason: str | None
    started_at: datetime | None
    being_made: bool
    digest: bytes
    submitting: bool

    @property
    def submitted(self) -> SubmittedJob:
        """The progress of the submission of its items."""
        return SubmittedJob(
            self.id, state=self.state, sealed=self.sealed, consumed=self.consumed, digest=self.digest,
            elsewhere=self.submitting,
        )  # fmt: skip

    @property
    def stops_others(self) -> bool:
        """Whether it ended in a way that stops the other stages."""
        return self.over and (self.state != "completed" or bool(self.failed and self.on_failure == "stop"))

    @property
    def parents_reason(self) -> str:
        """The reason that its parent gets when it stops the other stages."""
        failures = f"{self.failed} of {self.total} items failed"
        return f"stage '{self.name}': {failures if self.state == 'completed' else self.reason or self.state}"

    @property
    def unmade(self) -> bool:
        """Whether items of it must still be made from results."""
        return self.stage > 0 and not self.sealed

    @property
    def partly_made(self) -> bool:
        """Whether some of its items are made, or being made, and others are not."""
        return self.unmade and (self.consumed > 0 or (self.being_made and not self.over))


@dataclass(frozen=True, slots=True)
class StageClaim:
    """A stage that `worker` makes from the results of the job `source`; `consumed` inputs are already stored."""

    worker: int
    job: int
    name: str
    parent: int
    actor: str
    makes: str | None
    source: int
    consumed: int


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """The data that a worker process announces when it starts."""

    host: str
    pid: int
    threads: int
    release: str
    actors: dict[str, str] = field(default_factory=dict)  # name -> queue
    signatures: dict[str, Signature] = field(default_factory=dict)  # by actor, if known
    broker: str | None = None  # the name of its cluster and virtual host
