"""Callboard: progress that is always true for Dramatiq actors.

Everything an app needs is here: `install` tracks a broker, `submit` makes a job of any number of items, and an actor
stays a plain function that may raise `Skip`, call `step` and `progress`, and look at `current`.
"""

from callboard.middleware.addressee import UnknownActor
from callboard.middleware.batch import batch
from callboard.middleware.broker import install
from callboard.middleware.current import NotInAnItem, Skip, current, progress, send_now, step
from callboard.middleware.job import Job, NotTracked, aget, get, job
from callboard.middleware.ledger import JobClosed
from callboard.middleware.rabbitmq import RabbitmqBroker
from callboard.middleware.send import NotStored
from callboard.middleware.submit import BadItem, SubmittedElsewhere, asubmit, submit
from callboard.sql.controls import NoSuchJob, NotPossible
from callboard.sql.migrate import SchemaError
from callboard.sql.pool import NotConfigured

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
    "SchemaError",
    "Skip",
    "SubmittedElsewhere",
    "UnknownActor",
    "aget",
    "asubmit",
    "batch",
    "current",
    "get",
    "install",
    "job",
    "progress",
    "send_now",
    "step",
    "submit",
]
