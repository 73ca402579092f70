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
    """The `hold_back` of an attempt that no actor runs: does nothing."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One try at an item. Its worker thread writes it until the attempt ends; the journal's thread reads it."""

    job: int
    item: int
    number: int  # from 1, over the item's life
    deliveries: list[Delivery]  # of its message, copies included
    controls: Mapping[int, JobControl]  # the last known control states of jobs
    epoch: int = 0  # of its message
    actor: str = ""
    message: MessageProxy | None = None
    standing: bool = False  # in its actor's standing job: its sends are published at once, as without Callboard
    worker: int = 0
    hold_back: Callable[[tuple[int, int], float, str], None] = _hold_nothing  # (job, item), seconds, reason
    read_facts: Callable[[int], JobFacts] = _unknown  # of a job; may read the database
    database: str = ""  # the URL of the database that has its item; empty: unknown
    started: float = field(default_factory=time.monotonic)
    thread: int = field(default_factory=get_ident)  # its stack shows where the attempt hangs
    place: int | None = None  # its place in the process's RunFile; None: it has none
    sampled: float = 0.0  # when that stack was last read
    moved: float = 0.0  # when a new step or progress was last written
    running: bool = False  # it has a row in `running`, or one is being written
    reported: bool = False  # that row is committed
    step: str | None = None
    step_reported: str | None = None
    progress: Progress | None = None
    progress_reported: Progress | None = None
    returned: bool = False
    result: Any = None
    hooks: bool = False  # the actor has returned; the hooks of the other middleware run
    interrupted: bool = False  # an interrupt stopped these hooks, so they run once more, as for a failure
    ended: bool = False
    forked: bool = False  # this process is a child that its actor forked: the parent records the attempt
    put_off: bool = False  # its outcome waits for a lock; other outcomes are recorded before it
    retry: NewItem | None = None  # its message, which a hook sent once more
    sent: list[NewItem] = field(default_factory=list)  # sent by the actor: stored with a success or a skip only
    hooked: list[NewItem] = field(default_factory=list)  # sent by hooks: stored with any outcome
    saves: Saves | None = None  # statements that are executed with its outcome, if that is a success
    batch: "list[Attempt] | None" = None  # the attempts of one call of an actor that takes batches, itself first
    children: int = 0  # how many `sent` and `hooked` have
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
        """Whether its job has stopped since its message was sent. A control state of an older epoch is ignored."""
        control = self.controls.get(self.job)
        return control is not None and control.over and control.epoch >= self.epoch

    def add_child(self, item: NewItem) -> bool:
        """Keep a sent item until the outcome is recorded; return False if the attempt has ended. Thread-safe."""
        with _ending:
            if not self.ended:
                (self.hooked if self.hooks else self.sent).append(item)
                self.children += 1
                self.child_bytes += item.size
            return not self.ended

    def take_sent(self) -> list[NewItem]:
        """Return the items that the actor has sent so far, and no longer keep them. Thread-safe."""
        with _ending:
            sent, self.sent = self.sent, []
            self.children = self.child_bytes = 0
        return sent

    def add_save(self, save: Save, size: int, *, most: int, limit: int) -> bool:
        """Keep a statement of `size` bytes that is executed with the outcome; return False if the attempt has ended.
        Raises ValueError for more than `most` statements, or more than `limit` bytes together. Thread-safe.
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
        """Take no more children and no more statements."""
        with _ending:
            self.ended = True


#: The actor's own threads may send while the attempt ends. One lock serves all attempts, because it is held only
#: briefly.
_ending = threading.Lock()

#: The attempt that this thread, or this task of an async actor, runs.
current_attempt: ContextVar[Attempt | None] = ContextVar("callboard_attempt", default=None)


def _forget_current() -> None:
    """In a child process: the parent would never record what the child sends or saves with the outcome."""
    if (attempt := current_attempt.get()) is not None:
        attempt.forked = True
        current_attempt.set(None)


os.register_at_fork(after_in_child=_forget_current)
