"""One try at an item, while it is in a worker thread's hands."""

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

from callboard.sql.rows import JobControl, NewItem, Progress, Retry


@dataclass(slots=True, eq=False)
class Attempt:
    """One try. Written by its worker thread until it is noted in the journal, read by the journal's thread."""

    job: int
    item: int
    number: int
    deliveries: list[Any]  # the consumer's message proxies, copies included
    controls: Mapping[int, JobControl]  # what jobs said last
    started: float = field(default_factory=time.monotonic)
    thread: int = field(default_factory=get_ident)  # whose stack shows where it hangs
    looked: float = 0.0  # when that was last looked at
    running: bool = False  # it has, or is about to have, a row in `running`
    reported: bool = False  # that row is committed
    step: str | None = None
    step_reported: str | None = None
    progress: Progress | None = None
    progress_reported: Progress | None = None
    returned: bool = False
    result: Any = None
    hooks: bool = False  # the actor is done, the other middleware's hooks run
    ended: bool = False
    abandoned: bool = (
        False  # the process ends before its end is on record: its message must stay unacknowledged
    )
    retry: Retry | None = None
    sent: tuple[NewItem, ...] = ()  # by the actor: go with a success or a skip only
    hooked: tuple[NewItem, ...] = ()  # by callbacks: go with any outcome

    @property
    def key(self) -> tuple[int, int]:
        """(job, item)."""
        return self.job, self.item

    @property
    def actor(self) -> str:
        """Its actor's name."""
        return str(self.deliveries[0].actor_name)

    @property
    def says_more(self) -> bool:
        """Whether its actor said something that is not written yet."""
        return self.step != self.step_reported or self.progress != self.progress_reported

    @property
    def cancelled(self) -> bool:
        """Whether its job was stopped meanwhile."""
        control = self.controls.get(self.job)
        return control is not None and control.over


#: The attempt that this thread (or the task an async actor runs in) has in hand.
current_attempt: ContextVar[Attempt | None] = ContextVar("callboard_attempt", default=None)
