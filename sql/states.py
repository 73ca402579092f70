"""The states, and scopes. Tests compare them with the enums of the schema and with the diagrams of the documents."""

from typing import Final

#: The states of an item row. The others that an item is described with are derived: see `ITEM_STATES`.
STORED: Final = ("waiting", "retrying", "succeeded", "failed", "skipped", "cancelled")

#: The final states of an item row.
FINAL: Final = ("succeeded", "failed", "skipped", "cancelled")

#: The transitions of an item row that `record` makes: from the state, to the states.
MOVES: Final[dict[str, tuple[str, ...]]] = {
    "waiting": ("retrying", "succeeded", "failed", "skipped"),
    "retrying": ("waiting", "retrying", "succeeded", "failed", "skipped"),
    "succeeded": (),
    "failed": (),
    "skipped": (),
    "cancelled": (),
}

#: The states of items that `retry` gives another attempt.
RETRIABLE: Final = ("failed", "skipped", "cancelled")

#: The states that a job's items are counted by, in the order of an item's life; the counts add up to its total.
ITEM_STATES: Final = (
    "pending", "queued", "running", "retrying", "succeeded", "failed", "skipped", "cancelled",
)  # fmt: skip

JOB_STATES: Final = ("pending", "running", "paused", "completed", "failed", "cancelled")

#: The final states of a job.
JOB_FINAL: Final = ("completed", "failed", "cancelled")

#: The reasons why an attempt did not simply succeed.
ATTEMPT_KINDS: Final = ("failed", "timed_out", "crashed", "skipped", "postponed")

#: The states of a worker process, by its heartbeat.
WORKER_STATES: Final = ("alive", "stopped", "dead")

#: What a login may allow: to look, to make jobs, to change them, and to give out tokens.
SCOPES: Final = ("read", "submit", "control", "admin")
#: Those of a login that names none.
DEFAULT_SCOPES: Final = ("read", "submit", "control")
