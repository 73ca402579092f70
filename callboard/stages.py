"""Stages: a job of several steps, each made from the results of the previous step."""

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dramatiq

from callboard.job import Job
from callboard.middleware.runtime import Runtime
from callboard.middleware.submission import actor_lookup, stage_plan, submission
from callboard.middleware.submission.actor_lookup import Actor, Callbacks
from callboard.middleware.submission.item_encoding import encode_all
from callboard.middleware.submission.submission import Submission
from callboard.middleware.tracking import runtime_of
from callboard.sql.limits import Limits
from callboard.sql.rows import PlannedStage
from callboard.sql.signature import Signature
from callboard.sql.writes import stages as writes

Make = Callable[..., Any] | str


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a job: runs of `actor`, an actor or its registered name.

    - `items`: the items of the first stage, as in `submit`; later stages have none.
    - `make`: a function, or its path "module:name", that makes the items of a later stage when the previous stage is
      completed. It gets the `Results` of the items that succeeded, and yields or returns items. A worker imports and
      calls it. If that worker dies, another one calls it again and skips the stored items, so it must yield the same
      items in the same order. None: each result is an item, except a result that is None.
    - `name`: shown to readers; None: the actor's name.
    - `on_failure`: if items of this stage failed, "stop" the job, or "go on" with the next stage.
    - `chunk`: the maximum number of items in one message, as in `submit`.

    Raises ValueError for an invalid stage.
    """

    actor: Actor
    items: Iterable[Any] | None = None
    make: Make | None = None
    name: str | None = None
    on_failure: str = "stop"
    chunk: int | None = None

    def __post_init__(self) -> None:
        stage_plan.check_on_failure(self.on_failure)
        submission.check_chunk(self.chunk)
        if self.make is not None:
            path(self.make)

    @property
    def title(self) -> str:
        """The name of the stage, or of its actor."""
        if self.name is not None:
            return self.name
        return self.actor if isinstance(self.actor, str) else self.actor.actor_name


def stages(
    name: str, stages: Sequence[Stage], *, key: str | None = None, metadata: dict[str, Any] | None = None,
    tenant: str | None = None, priority: int = 0, created_by: str | None = None, max_failures: int | str | None = None,
    concurrency: int | None = None, concurrency_by: str | Mapping[Any, int] | None = None, rate: str | None = None,
    delay: timedelta | str | None = None, at: datetime | str | None = None,
    deadline: datetime | timedelta | str | None = None, keep: timedelta | str | None = None,
    on_complete: Callbacks = None, on_fail: Callbacks = None, on_cancel: Callbacks = None, key_reuse: bool = False,
    lanes: int | None = None,
) -> Job:  # fmt: skip
    """Make a job of stages, store the items of the first stage and start it. Workers make each later stage when the
    previous one is completed.

        callboard.stages("audit", [Stage(fetch, items=urls), Stage(check, make=pages), Stage(report, make=total)])

    The options are those of `submit`. Limits apply to each stage, `keep` and the callbacks to the whole job. If a job
    with this `key` exists, it is returned, and an interrupted submission continues.

    Raises ValueError for invalid stages or options, KeyInUse, UnknownActor, BadItem, SubmittedElsewhere, psycopg.Error
    if the database can't be reached, and errors of the iterable of items. A job without a key is then stopped as
    `failed`, with the reason.
    """
    items = _first_items(stages)
    limits = Limits(
        max_failures, concurrency, rate, priority, deadline, submission.start(delay, at), keep, concurrency_by, lanes
    )
    broker = actor_lookup.broker_of(stages[0].actor)
    runtime = runtime_of(broker)
    targets = actor_lookup.targets(runtime.write, broker, on_complete, on_fail, on_cancel)
    planned = [_planned(runtime, stage) for stage in stages]
    if limits.lane_by:
        stage_plan.check_lane([_signature(runtime, stage) for stage in stages], limits.lane_by)
    with submission.submitting(planned[0].actor, planned[0].queue) as trace:
        parent, found = runtime.write(
            lambda conn: writes.create(
                conn, planned, name=name, key=key, tenant=tenant, metadata=metadata, created_by=created_by,
                limits=limits, targets=targets, key_reuse=key_reuse, trace=trace,
            )
        )  # fmt: skip
        rows = encode_all(items, signature=actor_lookup.signature_here(broker, stages[0].actor))
        first = found[0].submitted
        Submission(runtime.write, runtime.submissions, runtime.publish_job, first, key).store(rows)
    return Job(parent, runtime)


async def astages(name: str, stages_: Sequence[Stage], **options: Any) -> Job:
    """Like `stages`, without blocking the event loop."""
    return await asyncio.to_thread(stages, name, stages_, **options)


def path(make: Make) -> str:
    """Return a function's path, "module:name". Raises ValueError for a function that a worker could not import."""
    if isinstance(make, str):
        return stage_plan.check_path(make)
    function = actor_lookup.function_of(make)
    named: Any = type(make) if isinstance(make, dramatiq.GenericActor) else function
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    advice = "workers import it by its name: write it as a plain function at the top level of a module"
    if not module or not name:
        raise ValueError(f"{make!r} can't make a stage: {advice}")
    if module == "__main__" or "<" in name:
        main = module == "__main__"
        where = "in the program's main module" if main else "without a name of its own in a module"
        raise ValueError(f"{name} can't make a stage, because it is {where}: {advice}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(f"{name} can't make a stage, because it is async: write it as a plain function")
    there: Any = sys.modules.get(module)
    for part in name.split("."):
        there = getattr(there, part, None)
    if there is not make:
        raise ValueError(f"{name} can't make a stage, because {module} has another object with that name: {advice}")
    return f"{module}:{name}"


def _first_items(stages: object) -> Iterable[Any]:
    """Return the items of the first stage. Raises ValueError for an invalid sequence of stages."""
    if not (isinstance(stages, Sequence) and stages and all(isinstance(stage, Stage) for stage in stages)):
        raise ValueError("stages must be a list of at least one callboard.Stage")
    items: Iterable[Any] | None = stages[0].items
    if items is None or stages[0].make is not None:
        raise ValueError("the first stage must have items, and no make")
    submission.check_items(items)
    if late := next((stage for stage in stages[1:] if stage.items is not None), None):
        raise ValueError(f"only the first stage may have items; those of {late.title!r} are made from results")
    return items


def _planned(runtime: Runtime, stage: Stage) -> PlannedStage:
    actor, queue = actor_lookup.resolve(runtime.write, actor_lookup.broker_of(stage.actor), stage.actor)
    makes = None if stage.make is None else path(stage.make)
    return PlannedStage(stage.title, actor, queue, makes, stage.on_failure, stage.chunk)


def _signature(runtime: Runtime, stage: Stage) -> Signature | None:
    return actor_lookup.signature(runtime.write, actor_lookup.broker_of(stage.actor), stage.actor)
