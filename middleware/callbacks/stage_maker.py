"""Makes the items of due stages from the results of the previous stage, one worker thread per stage."""

import importlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.message.envelope import decode_args
from callboard.middleware.message.failure import clean, describe
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import Process, Stopping
from callboard.middleware.submission.item_encoding import BadItem, Row, encode_all
from callboard.middleware.submission.submission import store_rows
from callboard.sql.pool import Conn
from callboard.sql.rows import StageClaim
from callboard.sql.signature import Signature
from callboard.sql.states import FINAL
from callboard.sql.writes import stages

T = TypeVar("T")

log = logging.getLogger("callboard.stages")
_log_outage = OutageLog(log, "the items of a stage wait for the database: %s")

#: Results that are read per page.
PAGE_ITEMS = 100
#: Seconds after which the new items are stored, even if they are few.
CHUNK_SECONDS = 1.0
#: The most stages that a process makes at the same time.
STAGES_AT_ONCE = 4
#: The most characters of a reason, and of an item in it.
REASON_CHARACTERS = 500
ITEM_CHARACTERS = 100


class StopMaking(BaseException):
    """This worker must stop making the stage: the worker stops, or the job was paused or stopped. It is raised inside
    the user's function. It is no Exception, so that the function does not catch it.
    """


class FewerItems(ValueError):
    """A function yielded fewer items than before, when its worker died."""


@dataclass(frozen=True, slots=True)
class Result:
    """An item of the previous stage: its number `item`, its arguments, its `state`, and the `result` of its actor;
    `unkept`: why that result is not kept, or None.
    """

    item: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: str
    result: Any
    unkept: str | None = None


@dataclass(slots=True)
class Results:
    """The items of the previous stage, in order, read page by page. Iteration yields the succeeded items; `of` yields
    items in other states.
    """

    _page: Callable[[Sequence[str], int], list[tuple[int, bytes, str, str | None, str | None]]]

    def __iter__(self) -> Iterator[Result]:
        return self.of("succeeded")

    def of(self, *states: str) -> Iterator[Result]:
        """Yield the items in these states: succeeded, failed, skipped, cancelled. Raises ValueError for others."""
        if strange := sorted(set(states) - set(FINAL)):
            raise ValueError(f"of() takes {', '.join(FINAL)}, not {strange[0]!r}")
        return self._read(states)

    def _read(self, states: Sequence[str]) -> Iterator[Result]:
        after = -1
        while page := self._page(states, after):
            for after, args, state, result, unkept in page:
                value = None if result is None else json.loads(result)
                yield Result(after, *decode_args(args), state, value, unkept)


@dataclass(slots=True)
class StageMaker:
    """See the module. `publish_job` publishes the first items of a job from this process. `actors`: {actor of this
    worker: the arguments that it takes, or None if they are not known}.
    """

    process: Process
    publish_job: Callable[[int], None]
    actors: Mapping[str, Signature | None] = field(default_factory=dict)
    _threads: dict[int, threading.Thread] = field(default_factory=dict)  # by the job of the stage

    def make_due(self, conn: Conn) -> None:
        """Update the parent jobs of stages, and begin the due stages, at most `STAGES_AT_ONCE` at the same time."""
        stages.update_parents(conn)
        self._threads = {job: thread for job, thread in self._threads.items() if thread.is_alive()}
        for _ in range(STAGES_AT_ONCE - len(self._threads)):
            if self.process.stopping:
                return
            claim = stages.claim_stage(conn, self.process.worker, sorted(self.actors), list(self._threads))
            if claim is None:
                return
            thread = threading.Thread(target=self._run, args=(claim,), daemon=True)
            thread.name = f"callboard-stage-{claim.job}"
            thread.start()
            self._threads[claim.job] = thread

    def close(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the threads, which end soon in a process that stops. A claim that is left
        is released when the worker's end is recorded.
        """
        deadline = time.monotonic() + timeout
        for thread in list(self._threads.values()):
            thread.join(max(deadline - time.monotonic(), 0.0))

    # One stage -------------------------------------------------------------------------------------------------------

    def _run(self, claim: StageClaim) -> None:
        log.info("the items of stage %r, job %d, are made from job %d", claim.name, claim.job, claim.source)
        try:
            self._make(claim)
        except StopMaking:
            self._leave(claim, lambda conn: stages.release_claim(conn, claim))
        except BaseException as error:  # noqa: BLE001 — a function of the user's may raise anything
            self._fail(claim, error)

    def _make(self, claim: StageClaim) -> None:
        def store(start: int, rows: list[Row]) -> None:
            if not self._write(lambda conn: stages.store_inputs(conn, claim, start, rows)):
                raise StopMaking
            if start == 0:
                self.publish_job(claim.job)

        given: deque[Any] = deque(maxlen=1)
        items = _items(claim, Results(lambda states, after: self._page(claim, states, after)), given)
        rows = encode_all(items, stored=claim.consumed, signature=self.actors.get(claim.actor))
        try:
            store_rows(rows, claim.consumed, store, chunk_seconds=CHUNK_SECONDS)
        except BadItem as error:
            source = f"{claim.makes} gave" if claim.makes else "the stage before returned"
            raise BadItem(
                f"{error}; {source} {given[-1]!r:.{ITEM_CHARACTERS}}, and an item is a dict of its actor's arguments, "
                "a list of them, or a single one"
            ) from error
        self._write(lambda conn: stages.seal_stage(conn, claim))

    def _page(self, claim: StageClaim, states: Sequence[str], after: int) -> list[Any]:
        def read(conn: Conn) -> list[Any] | None:
            if not stages.holds_claim(conn, claim):
                return None
            return stages.results_page(conn, claim.source, states, after, PAGE_ITEMS)

        page = self._write(read)
        if page is None:
            raise StopMaking
        return page

    def _write(self, statement: Callable[[Conn], T]) -> T:
        if self.process.stopping:
            raise StopMaking
        try:
            return self.process.retry_write(statement, _log_outage)
        except Stopping:
            raise StopMaking from None

    def _fail(self, claim: StageClaim, error: BaseException) -> None:
        failure = describe(error)
        what = f"{failure.error_type}: {failure.message}" if failure.message else failure.error_type
        log.error("stage %r, job %d, can't be made: %s", claim.name, claim.job, what, exc_info=error)
        reason = clean(f"its items can't be made: {what}", REASON_CHARACTERS)
        detail = {
            "reason": f"stage '{claim.name}': {reason}", "makes": claim.makes, "place": failure.place,
            "traceback": failure.traceback,
        }  # fmt: skip
        self._leave(claim, lambda conn: stages.fail_stage(conn, claim, reason, detail))

    def _leave(self, claim: StageClaim, statement: Callable[[Conn], None]) -> None:
        try:
            self.process.write(statement)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("stage job %d goes on when the database answers: %s", claim.job, error)


def _items(claim: StageClaim, results: Results, given: deque[Any]) -> Iterator[Any]:
    """Yield the items that the stage's function makes, or the results if there is none; append each to `given`, too.
    Raises FewerItems.
    """
    count = 0
    for item in _call(claim.makes, results):
        given.append(item)
        yield item
        count += 1
    if count < claim.consumed:
        raise FewerItems(
            f"{claim.makes} gave {count} items where it gave {claim.consumed} before its worker ended: "
            "it must give the same items in the same order"
        )


def _call(makes: str | None, results: Results) -> Iterable[Any]:
    if makes is None:
        return _as_items(results)
    module, _, name = makes.partition(":")
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    made = function(results)
    if not isinstance(made, Iterable) or isinstance(made, str | bytes | dict):
        raise TypeError(f"{makes} gave {type(made).__name__}: it must yield items, or return a list of them")
    return made


def _as_items(results: Results) -> Iterator[Any]:
    """Yield the results that are not None. Raises ValueError for a result that is not kept."""
    for one in results:
        if one.unkept is not None:
            raise ValueError(f"the result of item {one.item} of the stage before is not kept: {one.unkept}")
        if one.result is not None:
            yield one.result
