"""One try at an item, from its message's arrival to the commit of its outcome."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

from dramatiq.broker import MessageProxy

from callboard.middleware.message.delivery import Delivery
from callboard.sql.rows import JobControl, JobFacts, NewItem, Progress, Save, Saves


def _unknown(job: int) -> JobFacts:
    raise LookupError(f"nothing is known of job {job}")


def _hold_nothing(key: tuple[int, int], seconds: float, reason: str) -> None:
    """Stand in for `hold_back` in an attempt that no actor runs."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One try. Its worker thread writes it until it ends, the journal's thread reads it."""

    job: int
    item: int
    number: int  # from 1, over the item's life
    deliveries: list[Delivery]  # of its message, copies included
    controls: Mapping[int, JobControl]  # the last known control states of jobs
    epoch: int = 0  # of its message
    actor: str = ""
    message: MessageProxy | None = None
    standing: bool = False  # in its actor's standing job: what it sends goes at once, as without Callboard
    worker: int = 0
    hold_back: Callable[[tuple[int, int], float, str], None] = _hold_nothing  # (job, item), seconds, reason
    read_facts: Callable[[int], JobFacts] = _unknown  # of a job; may read the database
    database: str = ""  # the URL of the one that has its item; empty: nobody said
    started: float = field(default_factory=time.monotonic)
    thread: int = field(default_factory=get_ident)  # its stack shows where the attempt hangs
    place: int | None = None  # in the file of what the process runs
    sampled: float = 0.0  # when that stack was last read
    moved: float = 0.0  # when a new step or progress of it was last written
    running: bool = False  # it has, or is about to have, a row in `running`
    reported: bool = False  # that row is committed
    step: str | None = None
    step_reported: str | None = None
    progress: Progress | None = None
    progress_reported: Progress | None = None
    returned: bool = False
    result: Any = None
    hooks: bool = False  # the actor is done, the other middleware's hooks run
    struck: bool = False  # an interrupt broke them off, and they run once more, as for a failure
    ended: bool = False
    put_off: bool = False  # its outcome waits for a lock, and others are recorded before
    retry: NewItem | None = None  # the same message, sent once more by a hook
    sent: list[NewItem] = field(default_factory=list)  # by the actor: stored with a success or a skip only
    hooked: list[NewItem] = field(default_factory=list)  # by callbacks: stored with any outcome
    saves: Saves | None = None  # with its outcome, if that is a success
    batch: "list[Attempt] | None" = None  # of those whose call its actor is, if it takes batches: itself first
    children: int = 0  # of both
    child_bytes: int = 0  # of their messages

    @property
    def key(self) -> tuple[int, int]:
        """(job, item)."""
        return self.job, self.item

    @property
    def unreported(self) -> bool:
        """Whether its actor set a step or progress that is not written yet."""
        return self.step != self.step_reported or self.progress != self.progress_reported

    @property
    def cancelled(self) -> bool:
        """Whether its job has stopped since its message was sent; an older control state says nothing about it."""
        control = self.controls.get(self.job)
        return control is not None and control.over and control.epoch >= self.epoch

    def add_child(self, item: NewItem) -> bool:
        """Keep what is sent until the outcome is recorded; return False if it comes too late. Thread-safe."""
        with _ending:
            if not self.ended:
                (self.hooked if self.hooks else self.sent).append(item)
                self.children += 1
                self.child_bytes += item.size
            return not self.ended

    def take_sent(self) -> list[NewItem]:
        """Return what the actor has sent so far, and keep it no longer. Thread-safe."""
        with _ending:
            sent, self.sent = self.sent, []
            self.children = self.child_bytes = 0
        return sent

    def add_save(self, save: Save, size: int, *, most: int, limit: int) -> bool:
        """Keep a statement that runs with its outcome, `size` bytes of it; return False if it comes too late. Raises
        ValueError for more than `most`, or than `limit` bytes together. Thread-safe.
        """
        with _ending:
            if self.ended:
                return False
            if self.saves is None:
                self.saves = Saves()
            if len(self.saves.statements) == most or self.saves.size + size > limit:
                raise ValueError(
                    f"an item may save {most:,} statements, of {limit // 2**20} MiB with their parameters together"
                )
            self.saves.statements.append(save)
            self.saves.size += size
            return True

    def end(self) -> None:
        """Take no more children, and nothing more to save."""
        with _ending:
            self.ended = True


#: Threads of an actor's own may send while it ends. One lock serves all attempts, since it is held for an instant.
_ending = threading.Lock()

#: The attempt that this thread runs, or the task of an async actor.
current_attempt: ContextVar[Attempt | None] = ContextVar("callboard_attempt", default=None)
# What a child process would send or save with the outcome, the parent would never record.
os.register_at_fork(after_in_child=lambda: current_attempt.set(None))
