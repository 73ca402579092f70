"""Callboard: progress that is always true for Dramatiq actors.

- In the app: `install` tracks a broker, or `RabbitmqBroker` replaces Dramatiq's. Then every message is recorded.
- Many items at once: `submit` makes a job of them, `stages` makes a job of several steps, and a `job` block makes one
  job of its plain sends. `get` returns a job by its id. A `Job` can be read, waited for, cancelled, paused and retried.
- In an actor, which stays a plain function: raise `Skip` or `Postpone`, call `step` and `progress`, read `current`, and
  `save` rows of your own with the item's outcome. `LogContext` adds the item to log lines. `batch` makes an actor take
  many items at once, `send_now` publishes a message whatever the item's outcome, and `in_context` keeps the item in
  other threads.
- In a web app of your own: `Identity`, which the login of the mounted pages and API returns.
- Names that begin with `a` (`asubmit`, `aget`, …) are for async code, and do not block its event loop.
"""

from callboard.current import LogContext, NotInAnItem, Skip, current, hold, progress, save, send_now, step
from callboard.identity import Identity
from callboard.job import Job, aget, get, job
from callboard.middleware.attempts.batch import batch
from callboard.middleware.attempts.outcome import Postpone
from callboard.middleware.callbacks.stage_maker import Result, Results
from callboard.middleware.install import install
from callboard.middleware.rabbitmq.broker import RabbitmqBroker
from callboard.middleware.submission.actor_lookup import UnknownActor
from callboard.middleware.submission.enqueue import NotStored
from callboard.middleware.submission.item_encoding import BadItem
from callboard.middleware.submission.send_store import JobClosed
from callboard.middleware.submission.submission import SubmittedElsewhere
from callboard.middleware.submission.threads import in_context
from callboard.middleware.tracking import NotTracked
from callboard.sql.migrate import SchemaError
from callboard.sql.settings import NotConfigured
from callboard.sql.writes.requests import NoSuchItem, NoSuchJob, NotPossible
from callboard.sql.writes.submission import KeyInUse
from callboard.stages import Stage, astages, stages
from callboard.submit import asubmit, submit

__all__ = [
    "BadItem", "Identity", "Job", "JobClosed", "KeyInUse", "LogContext", "NoSuchItem", "NoSuchJob", "NotConfigured",
    "NotInAnItem", "NotPossible", "NotStored", "NotTracked", "Postpone", "RabbitmqBroker", "Result", "Results",
    "SchemaError", "Skip", "Stage", "SubmittedElsewhere", "UnknownActor", "aget", "astages", "asubmit", "batch",
    "current", "get", "hold", "in_context", "install", "job", "progress", "save", "send_now", "stages", "step",
    "submit",
]  # fmt: skip
