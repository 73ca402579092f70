"""A worker makes the items of the stages whose turn it is, each in a thread, from the results of the stage before."""

import importlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg
from dramatiq.message import get_encoder
from psycopg_pool import PoolTimeout

from callboard.middleware.message.failure import clean, describe
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import Process, Stopping
from callboard.middleware.submission.item_encoding import Row
from callboard.middleware.submission.submission import store_items
from callboard.sql.pool import Conn
from callboard.sql.rows import StageClaim
from callboard.sql.states import FINAL
from callboard.sql.writes import stages

log = logging.getLogger("callboard.stages")
_complain = OutageLog(log, "a stage that is made waits for the database: %s")

#: Results that are read at a time.
PAGE_ITEMS = 100
#: Seconds after which the items that were made so far are stored, also if they are few.
CHUNK_SECONDS = 1.0
#: Stages that a process makes at the same time.
MOST = 4
#: Characters of a reason.
REASON = 500


class Ended(BaseException):
    """This worker is to make the stage no more: it stops, or the job was paused or stopped. No function catches it."""


class MakesOthers(ValueError):
    """A function gave fewer items than it did before its worker died."""


@dataclass(frozen=True, slots=True)
class Result:
    """An item of the stage before: its number, its arguments, how it ended, and what its actor returned."""

    item: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: str
    result: Any


@dataclass(slots=True)
class Results:
    """The items of the stage before that succeeded, in order, read page by page; `of` gives others."""

    _page: Callable[[Sequence[str], int], list[tuple[int, bytes, str, str | None]]]

    def __iter__(self) -> Iterator[Result]:
        return self.of("succeeded")

    def of(self, *states: str) -> Iterator[Result]:
        """The items in these states: succeeded, failed, skipped, cancelled. Raises ValueError for other words."""
        if strange := sorted(set(states) - set(FINAL)):
            raise ValueError(f"no item of a stage that is over is {strange[0]!r}: only {', '.join(FINAL)}")
        return self._read(states)

    def _read(self, states: Sequence[str]) -> Iterator[Result]:
        after = -1
        while page := self._page(states, after):
            for after, args, state, result in page:
                call = get_encoder().decode(args)
                value = None if result is None else json.loads(result)
                yield Result(after, tuple(call["args"]), call["kwargs"], state, value)


@dataclass(slots=True)
class StageMaker:
    """See the module. `publish_job` publishes a job's first items from here; `actors` are those that it can run."""

    process: Process
    publish_job: Callable[[int], None]
    actors: Sequence[str] = ()
    _threads: dict[int, threading.Thread] = field(default_factory=dict)

    def look(self, conn: Conn) -> None:
        """Let jobs of stages follow their stages, and make those that are due, as many as there is room for."""
        stages.follow(conn)
        for _ in range(MOST - len(self._threads)):
            if self.process.stopping:
                return
            making = stages.claim(conn, self.process.worker, self.actors, list(self._threads))
            if making is None:
                return
            self._start(making)

    def _start(self, making: StageClaim) -> None:
        name = f"callboard-stage-{making.job}"
        thread = threading.Thread(target=self._run, args=(making,), name=name, daemon=True)
        self._threads[making.job] = thread
        try:
            thread.start()
        except BaseException:
            del self._threads[making.job]  # or nobody would make it: this worker lives, and has it
            raise

    def close(self, patience: float) -> None:
        """Wait for those at work, which hear that the process stops; what stays is given back by its goodbye."""
        until = time.monotonic() + patience
        for thread in list(self._threads.values()):
            thread.join(max(until - time.monotonic(), 0.0))

    # One stage -------------------------------------------------------------------------------------------------------

    def _run(self, making: StageClaim) -> None:
        log.info("makes the items of stage %r, job %d, from job %d", making.name, making.job, making.source)
        try:
            try:
                self._make(making)
            except Ended:
                self.process.write(lambda conn: stages.leave(conn, making))
            except BaseException as error:  # noqa: BLE001 — a function of the user's may raise anything
                self._fail(making, error)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning(
                "stage job %d is left, to be made on when the database answers: %s", making.job, error
            )
        finally:
            del self._threads[making.job]

    def _make(self, making: StageClaim) -> None:
        def store(start: int, rows: list[Row]) -> None:
            if not self._ask(partial(stages.store, making=making, start=start, chunk=rows)):
                raise Ended
            if start == 0:
                self.publish_job(making.job)

        items = _made(making, Results(lambda *of: self._page(making, *of)))
        store_items(items, making.consumed, store, chunk_seconds=CHUNK_SECONDS)
        self._ask(lambda conn: stages.seal(conn, making))

    def _page(self, making: StageClaim, states: Sequence[str], after: int) -> list[Any]:
        def read(conn: Conn) -> list[Any] | None:
            if not stages.holds(conn, making):
                return None
            return stages.results(conn, making.source, states, after, PAGE_ITEMS)

        page: list[Any] | None = self._ask(read)
        if page is None:
            raise Ended
        return page

    def _ask(self, ask: Callable[[Conn], Any]) -> Any:
        if self.process.stopping:
            raise Ended
        try:
            return self.process.retry_write(ask, _complain)
        except Stopping:
            raise Ended from None

    def _fail(self, making: StageClaim, error: BaseException) -> None:
        failure = describe(error)
        what = f"{failure.error_type}: {failure.message}" if failure.message else failure.error_type
        log.error("stage %r, job %d, can't be made: %s", making.name, making.job, what, exc_info=error)
        reason = clean(f"its items can't be made: {what}", REASON)
        detail = {
            "reason": f"stage '{making.name}': {reason}", "makes": making.makes, "place": failure.place,
            "traceback": failure.traceback,
        }  # fmt: skip
        self.process.write(lambda conn: stages.fail(conn, making, reason, detail))


def _made(making: StageClaim, results: Results) -> Iterator[Any]:
    """What the stage's function makes of the results, or the results themselves; raises MakesOthers."""
    count = 0
    for item in _call(making.makes, results):
        yield item
        count += 1
    if count < making.consumed:
        raise MakesOthers(
            f"{making.makes} gave {count} items where it gave {making.consumed} before its worker ended: "
            "it must give the same items in the same order"
        )


def _call(makes: str | None, results: Results) -> Iterable[Any]:
    if makes is None:
        return (one.result for one in results if one.result is not None)
    module, _, name = makes.partition(":")
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    made = function(results)
    if not isinstance(made, Iterable) or isinstance(made, str | bytes | dict):
        raise TypeError(f"{makes} gave {type(made).__name__}: it must yield items, or return a list of them")
    return made
