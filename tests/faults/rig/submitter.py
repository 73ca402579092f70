"""Submitters that a fault happens to: `callboard …` and scripts, in small chunks, killed at a stage of their work.

`python -m tests.faults.rig.submitter callboard ARGUMENT…` is the command; `slow GATE` and `block GATE` are scripts that
stand still in the middle until the file GATE is there, and `send FIRST` is one that sends. CALLBOARD_TEST_KILL names
the stage to die at.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import dramatiq
import psycopg

import callboard
from callboard.commands.main import main
from callboard.middleware.publish.transport import Answer
from callboard.middleware.rabbitmq.confirms import ConfirmingPublisher
from callboard.middleware.submission import send_store, submission
from callboard.sql import timings
from callboard.sql.rows import Outgoing
from callboard.sql.writes import publishing, sends
from callboard.sql.writes import submission as submission_writes

CHUNK, SENDS = 100, 1_000
#: The stage to die at; and a file for which a process waits that has stored ten chunks.
KILL, GATE = "CALLBOARD_TEST_KILL", "CALLBOARD_TEST_GATE"
HELD_AFTER = 10
LEASE = 8.0


def hurry() -> None:
    """What lapses does so soon."""
    timings.SUBMISSION_LEASE_SECONDS = timings.PUBLISH_LEASE_SECONDS = LEASE


def die() -> NoReturn:
    """As by the kernel, when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")


def at(place: Any, name: str, *, call: int = 1, done: bool = False) -> None:
    """Die at a call of this function, before it or when it is done."""
    real: Callable[..., Any] = getattr(place, name)
    calls = 0

    def deadly(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not done:
            die()
        found = real(*args, **options)
        return die() if calls == call else found

    setattr(place, name, deadly)


def hold(gate: Path) -> None:
    """Store only some chunks until the gate is there: whoever kills this process finds it at work."""
    real, calls = submission_writes.store_chunk, count(1)

    def held(*args: Any, **options: Any) -> Any:
        late = next(calls) > HELD_AFTER
        while late and not gate.exists():
            time.sleep(0.05)
        return real(*args, **options)

    submission_writes.store_chunk = held


def half_sent() -> None:
    """Die when the broker has half of a batch, and nobody says so to the database."""
    real = ConfirmingPublisher.publish

    def deadly(transport: ConfirmingPublisher, batch: Sequence[Outgoing]) -> list[Answer]:
        if batch:
            real(transport, batch[: len(batch) // 2])
            die()
        return real(transport, batch)

    ConfirmingPublisher.publish = deadly  # type: ignore[method-assign,assignment]


STAGES: dict[str, Callable[[], None]] = {
    "before the first chunk": lambda: at(submission_writes, "store_chunk"),
    "in the second COPY": lambda: at(psycopg.Copy, "write", call=2, done=True),
    "before the second COMMIT": lambda: at(submission_writes, "_copy", call=2, done=True),
    "after the second COMMIT": lambda: at(submission_writes, "store_chunk", call=2, done=True),
    "before the seal": lambda: at(submission_writes, "seal_job"),
    "after the seal": lambda: at(submission_writes, "seal_job", done=True),
    "in publishing": half_sent,
    "before it says what is published": lambda: at(publishing, "advance_watermark"),
}


#: Of a process that sends from four threads.
SEND_STAGES: dict[str, Callable[[], None]] = {
    "before a COMMIT": lambda: at(send_store, "add_items", call=5),
    "after a COMMIT": lambda: at(send_store, "add_items", call=5, done=True),
    "in publishing sends": half_sent,
    "before it says what is sent": lambda: at(sends, "end_send_leases"),
}


def waiting(gate: Path, items: int = 30) -> Iterator[dict[str, int]]:
    """Items of `work`; in their middle it blocks until the gate is there."""
    for number in range(items):
        if number == items // 2:
            while not gate.exists():
                time.sleep(0.2)
        yield {"number": number}


def slow(gate: str) -> None:
    """A source that takes its time."""
    submission.CHUNK_ITEMS = 10
    callboard.submit("work", waiting(Path(gate)), name="slow")


def block(gate: str) -> None:
    """A block of plain sends that takes its time."""
    work = dramatiq.get_broker().get_actor("work")
    with callboard.job("block"):
        for item in waiting(Path(gate)):
            work.send(**item)


def send(first: str) -> None:
    """Plain sends from four threads, of numbers from `first` on; those that returned are told."""
    work = dramatiq.get_broker().get_actor("work")
    with ThreadPoolExecutor(4) as pool:
        for message in pool.map(work.send, range(int(first), int(first) + SENDS)):
            print(message.args[0], flush=True)


def run(what: str, arguments: list[str]) -> int:
    """The command, or a script; dies at the stage that the environment names."""
    hurry()
    submission.CHUNK_ITEMS = CHUNK
    if stage := os.environ.get(KILL):
        (STAGES | SEND_STAGES)[stage]()
    if gate := os.environ.get(GATE):
        hold(Path(gate))
    if what == "callboard":
        return main(arguments)
    importlib.import_module("tests.faults.rig.actors")
    {"slow": slow, "block": block, "send": send}[what](*arguments)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
