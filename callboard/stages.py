"""Stages: a job made of steps that follow one another, each made from the results of the one before."""

import asyncio
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dramatiq
import psycopg
from psycopg_pool import PoolTimeout

from callboard.job import Job
from callboard.middleware.runtime import Runtime
from callboard.middleware.submission import actor_lookup, submission
from callboard.middleware.submission.actor_lookup import Called
from callboard.middleware.submission.submission import Submission
from callboard.middleware.tracking import runtime_of
from callboard.sql.limits import Limits
from callboard.sql.rows import NewStage, StageRow
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import stages as staged

ON_FAILURE = ("stop", "go on")
PATH = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")

Make = Callable[..., Any] | str


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: runs of `actor` (an actor or its registered name), called `name`.

    The first has `items`, as `submit` has them. Each later one is made when the one before is completed: by `make`, a
    function (or its path, "module:name") that gets the items that succeeded, as `Result`s, and yields or returns items;
    workers import it. Without `make` each result is an item; what returned nothing gives none. After a crash it is
    called again, and what is stored is passed over: it must give the same items in the same order. `on_failure`: failed
    items "stop" the stages after it, or they "go on". `chunk`: items that one message carries.

    Raises ValueError for what can't be a stage.
    """

    actor: dramatiq.Actor[..., Any] | str
    items: Iterable[Any] | None = None
    make: Make | None = None
    name: str | None = None
    on_failure: str = "stop"
    chunk: int = 1

    def __post_init__(self) -> None:
        if self.on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure must be 'stop' or 'go on', not {self.on_failure!r}")
        submission.check_chunk(self.chunk)
        if self.make is not None:
            path(self.make)

    @property
    def title(self) -> str:
        """Its name, or its actor's."""
        return self.name or (self.actor if isinstance(self.actor, str) else self.actor.actor_name)


def stages(
    name: str, stages: Sequence[Stage], *, key: str | None = None, metadata: dict[str, Any] | None = None,
    tenant: str | None = None, priority: int = 0, created_by: str | None = None, max_failures: int | str | None = None,
    concurrency: int | None = None, concurrency_by: str | Mapping[Any, int] | None = None, rate: str | None = None,
    delay: timedelta | str | None = None, at: datetime | str | None = None,
    deadline: datetime | timedelta | str | None = None, keep: timedelta | str | None = None, on_complete: Called = None,
    on_fail: Called = None, on_cancel: Called = None,
) -> Job:  # fmt: skip
    """Make a job of stages, and start the first; workers make the others, each when the one before is completed.

    The items of the first are streamed, as `submit` does; the options are its own: limits hold for each stage, and
    who is to be called is so when the whole ends. With a `key`, the same key gives the same job, and its submission
    goes on where it broke off.

    Raises ValueError for stages and options that make no sense, UnknownActor, BadItem, SubmittedElsewhere, and
    psycopg.Error when the database can't be reached. A job without a key is then stopped, `failed`, with the reason.
    """
    items = _checked(stages)
    limits = Limits(
        max_failures,
        concurrency,
        rate,
        priority or None,
        deadline,
        submission.start(delay, at),
        keep,
        concurrency_by,
    )
    first = stages[0].actor
    broker = dramatiq.get_broker() if isinstance(first, str) else first.broker
    runtime = runtime_of(broker)
    targets = actor_lookup.targets(
        runtime.write, broker, on_complete=on_complete, on_fail=on_fail, on_cancel=on_cancel
    )
    planned = [_planned(runtime, stage) for stage in stages]
    parent, found = runtime.write(
        lambda conn: staged.create(
            conn, planned, name=name, key=key, tenant=tenant or "", metadata=metadata or {}, created_by=created_by,
            limits=limits, targets=targets,
        )
    )  # fmt: skip
    _take_in(runtime, found[0], items, key)
    return Job(parent, runtime)


async def astages(name: str, stages_: Sequence[Stage], **options: Any) -> Job:
    """As `stages`, without blocking the event loop."""
    return await asyncio.to_thread(stages, name, stages_, **options)


def path(make: Make) -> str:
    """What a function is stored as, "module:name"; raises ValueError for one that a worker could not import."""
    if isinstance(make, str):
        if not PATH.fullmatch(make):
            raise ValueError(f"make must be a function, or its path as 'module:name', not {make!r}")
        return make
    function: Any = make.fn if isinstance(make, dramatiq.Actor) else make
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    advice = "workers import it by its name: write it as a plain function at the top of a module of yours"
    if not module or not name:
        raise ValueError(f"{make!r} can't make a stage: {advice}")
    if module == "__main__" or "<" in name:
        where = (
            "in the program's main module"
            if module == "__main__"
            else "without a name of its own in a module"
        )
        raise ValueError(f"{name} can't make a stage, for it is {where}: {advice}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(f"{name} can't make a stage, for it is async; a plain function yields items")
    there: Any = sys.modules.get(module)
    for part in name.split("."):
        there = getattr(there, part, None)
    if there is not make:
        raise ValueError(f"{name} can't make a stage, for it is not what {module} has by that name: {advice}")
    return f"{module}:{name}"


def _checked(stages: Sequence[Stage]) -> Iterable[Any]:
    """The items of the first; raises ValueError for what is no row of stages."""
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise ValueError("stages must be a list of callboard.Stage, at least one")
    items = stages[0].items
    if items is None or stages[0].make is not None:
        raise ValueError("the first stage has items, and no function that makes them")
    if late := next((stage for stage in stages[1:] if stage.items is not None), None):
        raise ValueError(f"only the first stage has items; those of {late.title!r} are made from results")
    return items


def _planned(runtime: Runtime, stage: Stage) -> NewStage:
    broker = dramatiq.get_broker() if isinstance(stage.actor, str) else stage.actor.broker
    actor, queue = actor_lookup.resolve(runtime.write, broker, stage.actor)
    makes = None if stage.make is None else path(stage.make)
    return NewStage(stage.title, actor, queue, makes, stage.on_failure, stage.chunk)


def _take_in(runtime: Runtime, first: StageRow, items: Iterable[Any], key: str | None) -> None:
    """Stream the items of the first stage, from where they stand."""
    if first.sealed or first.state in JOB_FINAL:
        return
    try:
        with runtime.submissions.held(first.id):
            Submission(runtime.write, runtime.publish_job, first.id, key, None, first.consumed).store_all(
                items
            )
    except BaseException:
        with suppress(psycopg.Error, PoolTimeout):  # workers let it follow, too
            runtime.write(staged.follow)
        raise
