"""Callboard: progress that is always true for Dramatiq actors.

Everything an app needs is here: `install` tracks a broker, `submit` makes a job of any number of items, and an actor
stays a plain function that may raise `Skip`, call `step` and `progress`, and look at `current`.
"""

from callboard.middleware.addressee import UnknownActor
from callboard.middleware.batch import batch
from callboard.middleware.broker import install
from callboard.middleware.current import NotInAnItem, Skip, current, progress, send_now, step
from callboard.middleware.inputs import BadItem
from callboard.middleware.job import Job, NotTracked, aget, get, job
from callboard.middleware.ledger import JobClosed
from callboard.middleware.making import Result, Results
from callboard.middleware.rabbitmq import RabbitmqBroker
from callboard.middleware.send import NotStored
from callboard.middleware.stages import Stage, astages, stages
from callboard.middleware.submit import SubmittedElsewhere, asubmit, submit
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
