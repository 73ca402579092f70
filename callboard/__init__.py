"""Callboard: progress that is always true for Dramatiq actors.

Everything an app needs is here: `install` tracks a broker, `submit` makes a job of any number of items, and an actor
stays a plain function that may raise `Skip`, call `step` and `progress`, and look at `current`.
"""

from callboard.current import NotInAnItem, Skip, current, progress, send_now, step
from callboard.job import Job, aget, get, job
from callboard.middleware.attempts.batch import batch
from callboard.middleware.callbacks.stage_maker import Result, Results
from callboard.middleware.install import install
from callboard.middleware.rabbitmq.broker import RabbitmqBroker
from callboard.middleware.submission.actor_lookup import UnknownActor
from callboard.middleware.submission.enqueue import NotStored
from callboard.middleware.submission.item_encoding import BadItem
from callboard.middleware.submission.send_store import JobClosed
from callboard.middleware.submission.submission import SubmittedElsewhere
from callboard.middleware.tracking import NotTracked
from callboard.sql.migrate import SchemaError
from callboard.sql.settings import NotConfigured
from callboard.sql.writes.actions import NoSuchJob, NotPossible
from callboard.stages import Stage, astages, stages
from callboard.submit import asubmit, submit

__all__ = [
    "BadItem",
    "Job",
    "JobClosed",
    "NoSuchJob",
    "NotConfigured",
    "NotInAnItem",
    "NotPossible",
    "NotStored",
    "NotTracked",
    "RabbitmqBroker",
    "Result",
    "Results",
    "SchemaError",
    "Skip",
    "Stage",
    "SubmittedElsewhere",
    "UnknownActor",
    "aget",
    "astages",
    "asubmit",
    "batch",
    "current",
    "get",
    "install",
    "job",
    "progress",
    "send_now",
    "stages",
    "step",
    "submit",
]
