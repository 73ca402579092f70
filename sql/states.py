"""The states, written once. The enums of the migrations, the README's diagrams and these are compared by a test."""

from typing import Final

#: What an item row says. The other words an item is described with are derived; see `ITEM_STATES`.
STORED: Final = ("waiting", "retrying", "succeeded", "failed", "skipped", "cancelled")

#: The final states of an item row.
FINAL: Final = ("succeeded", "failed", "skipped", "cancelled")

#: The moves of an item row that `record` makes: from the state, to the states.
MOVES: Final[dict[str, tuple[str, ...]]] = {
    "waiting": ("retrying", "succeeded", "failed", "skipped"),
    "retrying": ("waiting", "retrying", "succeeded", "failed", "skipped"),
    "succeeded": (),
    "failed": (),
    "skipped": (),
    "cancelled": (),
}

#: What `retry` gives another attempt: items that are final without success.
RETRIABLE: Final = ("failed", "skipped", "cancelled")

#: What a job's counts are given by, in the order of an item's life; they add up to its total.
ITEM_STATES: Final = (
    "pending",
    "queued",
    "running",
    "retrying",
    "succeeded",
    "failed",
    "skipped",
    "cancelled",
)

JOB_STATES: Final = ("pending", "running", "paused", "completed", "failed", "cancelled")

#: The final states of a job.
JOB_FINAL: Final = ("completed", "failed", "cancelled")

#: Why an attempt did not simply succeed.
ATTEMPT_KINDS: Final = ("failed", "timed_out", "crashed", "skipped")

#: What a worker process is, by its heartbeat.
WORKER_STATES: Final = ("alive", "stopped", "dead")
