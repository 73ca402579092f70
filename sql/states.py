"""The states and scopes. Tests compare them with the enums of the schema and with the diagrams of the documents."""

from typing import Final, Literal, TypeAlias, get_args

#: The states by which a job's items are counted, in the order of an item's life; the counts add up to its total.
ItemState: TypeAlias = Literal[
    "pending", "queued", "running", "retrying", "succeeded", "failed", "skipped", "cancelled"
]
ITEM_STATES: Final[tuple[str, ...]] = get_args(ItemState)

#: The final states of an item.
FINAL: Final = ("succeeded", "failed", "skipped", "cancelled")

#: The states of an item row, each with the states to which `record` moves it. The other states of `ItemState` are
#: derived.
MOVES: Final[dict[str, tuple[str, ...]]] = {
    "waiting": ("retrying", "succeeded", "failed", "skipped"),
    "retrying": ("waiting", "retrying", "succeeded", "failed", "skipped"),
    **dict.fromkeys(FINAL, ()),
}

#: The states of items that `retry` gives another attempt.
RETRIABLE: Final = ("failed", "skipped", "cancelled")

JobState: TypeAlias = Literal["pending", "running", "paused", "completed", "failed", "cancelled"]
JOB_STATES: Final[tuple[str, ...]] = get_args(JobState)

#: The final states of a job.
JOB_FINAL: Final = ("completed", "failed", "cancelled")

#: The reasons why an attempt did not simply succeed.
AttemptKind: TypeAlias = Literal["failed", "timed_out", "crashed", "skipped", "postponed"]

#: The states of a worker process, by its heartbeat.
WorkerState: TypeAlias = Literal["alive", "stopped", "dead"]
WORKER_STATES: Final[tuple[str, ...]] = get_args(WorkerState)

#: The scopes of a login: read, submit jobs, change jobs, and create tokens.
Scope: TypeAlias = Literal["read", "submit", "control", "admin"]
SCOPES: Final[tuple[str, ...]] = get_args(Scope)
#: The scopes of a login without given ones.
DEFAULT_SCOPES: Final = ("read", "submit", "control")
