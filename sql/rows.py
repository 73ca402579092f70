"""What goes into the statements and what comes out of them, as plain rows."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from callboard.sql.states import JOB_FINAL

OutcomeState: TypeAlias = Literal["succeeded", "failed", "skipped", "retrying"]
Kind: TypeAlias = Literal["failed", "timed_out", "crashed", "skipped"]

# Fields that statements take as columns: see `arrays`.
BigInt: TypeAlias = Annotated[int, "bigint"]
Int: TypeAlias = Annotated[int, "int"]
Float: TypeAlias = Annotated[float, "float8"]
Bool: TypeAlias = Annotated[bool, "bool"]
Text: TypeAlias = Annotated[str, "text"]
Bytes: TypeAlias = Annotated[bytes, "bytea"]


class Progress(NamedTuple):
    """How much of an item is done, of how much (None: nobody knows)."""

    done: Float
    total: Float | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt did not simply succeed. `place` is where it was raised; `traceback_size` the characters of the
    traceback before it was cut.
    """

    kind: Annotated[Kind, "callboard.attempt_kind"]
    error_type: Text
    message: Text
    place: Text = ""
    traceback: Text = ""
    traceback_size: Int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """The next attempt: `delay` in seconds, the message's `options` encoded (None: the item's), its timestamp (ms)."""

    delay: Float
    options: Bytes | None = None
    sent_ms: BigInt | None = None


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item sent the plain way: `args` and `options` as the app's encoder wrote them, `delay` in seconds.

    `key` makes it the only one of its job with that item key; `published` says that its message is under way already.
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


@dataclass(slots=True)
class Event:
    """How an attempt ended. `elapsed` is its duration, `ended` the monotonic time of its end, both in seconds.

    Not frozen, as the other rows are: there is one a message, and freezing doubles the cost of making it.
    """

    job: BigInt
    item: Int
    attempt: Int
    state: Annotated[OutcomeState, "callboard.item_state"]
    elapsed: Float
    ended: Float
    worker: Int
    failure: Failure | None = None
    retry: Retry | None = None
    result: Text | None = None
    children: tuple[NewItem, ...] = ()
    crashed: Bool = False
    dead: Bool = False  # its message can't be rejected, so its dead letter is written
    ran: bool = False  # it has a row in `running`


@dataclass(frozen=True, slots=True)
class JobControl:
    """What a job tells the workers that hold its items."""

    job: int
    state: str
    epoch: int
    stopping: bool = False  # it will be final when what is in hand has ended
    limited: bool = False  # what it may publish next depends on what ends

    @property
    def over(self) -> bool:
        """Whether nothing of it is to start any more, for good."""
        return self.stopping or self.state in JOB_FINAL

    @property
    def plain(self) -> bool:
        """Whether nothing was ever said to it, so that each of its messages is treated as if nothing were known."""
        return not self.epoch and not self.stopping and self.state in ("pending", "running", "completed")


@dataclass(frozen=True, slots=True)
class Running:
    """An item that has run for a while; `age` in seconds since its attempt started."""

    job: BigInt
    item: Int
    attempt: Int
    age: Float
    step: Text | None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class HangSample:
    """Where an attempt that hangs stands: `file:line in function`; and all the frames, the innermost first."""

    job: BigInt
    item: Int
    attempt: Int
    place: Text
    stack: Text


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim found: the item's state and attempt (None: no such item), and who holds it now."""

    state: str | None
    attempt: int
    crashes: int
    holder: int | None
    taken: bool
    holder_alive: bool


@dataclass(frozen=True, slots=True)
class BulkClaim:
    """A job that the holder of `token` may publish for: its bulk items, and `in_turn` messages of the outbox.

    `allowed`: how many its limits leave now (None: any); `limited`: the rest of its outbox waits for its turn too;
    `chunk`: how many bulk items one message carries; `served_at`: when it was served before (None: never). Of the items
    with the same value of the argument `lane_by` `lane_width` may be in flight; `applied_lane_by`: the argument that
    their lanes go by so far.
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
    chunk: int = 1
    served_at: datetime | None = None
    lane_by: str | None = None
    lane_width: int | None = None
    applied_lane_by: str | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish; `dead`: to the dead letters. `outbox` is its outbox row's id, None for a bulk item.

    `more` are the items that it carries after the first.
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
    more: tuple["Outgoing", ...] = ()


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback claimed for the try number `tries`: a webhook at `url`, or a message to `actor`. `ended` is the job's
    row when it ended, as JSON has it; `state` what it ended as.
    """

    id: str
    job: int
    state: str
    tries: int
    url: str | None
    host: str | None
    actor: str | None
    queue: str | None
    ended: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job of which something is published and has no end; `still`: it has not moved for a while."""

    job: int
    watermark: int
    bulk_end: int
    total: int
    still: bool


@dataclass(frozen=True, slots=True)
class PublishMark:
    """What was yet to be published at some time: of each job (job, its bulk items from, any items from), and all of
    the jobs beyond `last`.
    """

    jobs: list[tuple[int, int, int]]
    last: int


@dataclass(frozen=True, slots=True)
class Submission:
    """Where a job's submission stands."""

    job: int
    created: bool
    state: str
    sealed: bool
    consumed: int
    actor: str


@dataclass(frozen=True, slots=True)
class NewStage:
    """A stage to come. `makes`: the function that makes its items, as "module:name"; None: results are its items."""

    name: Text
    actor: Text
    queue: Text
    makes: Text | None
    on_failure: Text
    chunk: Int = 1


@dataclass(frozen=True, slots=True)
class Parent:
    """A job of stages; `stopping`: what it will be when its stages have ended."""

    id: int
    state: str
    stopping: str | None
    over: bool


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage of a job; `made`: somebody makes its items just now."""

    id: int
    stage: int
    name: str
    actor: str
    makes: str | None
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
    made: bool

    @property
    def bad(self) -> bool:
        """Whether it ended in a way that stops the others."""
        return self.over and (self.state != "completed" or bool(self.failed and self.on_failure == "stop"))

    @property
    def why(self) -> str:
        """What is said of the whole when it is bad."""
        failures = f"{self.failed} of {self.total} items failed"
        return f"stage '{self.name}': {failures if self.state == 'completed' else self.reason or self.state}"

    @property
    def unmade(self) -> bool:
        """Whether items of it are still to be made from results."""
        return self.stage > 0 and not self.sealed

    @property
    def partly(self) -> bool:
        """Whether some of its items are made, or are just being made, and others are not."""
        return self.unmade and (self.consumed > 0 or (self.made and not self.over))


@dataclass(frozen=True, slots=True)
class StageClaim:
    """A stage that a worker makes from the results of the job `source`; `consumed` inputs are stored already."""

    worker: int
    job: int
    name: str
    parent: int
    makes: str | None
    source: int
    consumed: int


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker process says of itself when it starts."""

    host: str
    pid: int
    threads: int
    release: str
    actors: dict[str, str] = field(default_factory=dict)  # name -> queue


Row: TypeAlias = dict[str, Any]
