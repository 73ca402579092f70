"""Finds attempts that take far longer than their actor's mean, and samples where they hang."""

import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from traceback import FrameSummary, StackSummary, walk_stack
from types import FrameType
from typing import Any

from dramatiq.asyncio import get_event_loop_thread

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.failure import NAME_CHARS, clean
from callboard.sql import settings
from callboard.sql.rows import Running

#: An attempt hangs when it takes this many times as long as its actor typically does, without a new step or progress.
HANG_FACTOR = 10.0
#: Seconds between two samples of an attempt that hangs.
SAMPLE_SECONDS = 10.0
#: Frames and characters that are kept of a stack.
STACK_FRAMES = 20
STACK_CHARS = 4_000

#: Modules whose frames are left out, and modules whose callers are all of these modules.
INTERNAL = ("dramatiq.", "callboard.middleware.", "callboard.sql.")
BOTTOM = ("dramatiq.worker", "dramatiq.asyncio")
PYTHON = sysconfig.get_path("stdlib")
PACKAGES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
#: The stack of an attempt whose thread has ended.
GONE = "its thread has ended"


@dataclass(slots=True)
class HangDetector:
    """`typical` returns the mean seconds of an actor's attempts, 0 if none has ended. `least`: an attempt that takes
    fewer seconds never counts as hanging.
    """

    typical: Callable[[str], float]
    least: float = field(default_factory=settings.HUNG_AFTER.get)

    def limit(self, actor: str) -> float:
        """Return the seconds after which an attempt of this actor hangs."""
        return max(self.least, HANG_FACTOR * self.typical(actor))

    def look(self, attempts: Iterable[Attempt], now: float) -> list[Running]:
        """Return a sample of each attempt that hangs and has no recent sample; `now` is monotonic.

        A new step or progress restarts the time of an attempt.
        """
        reported = [a for a in attempts if a.reported and not a.unreported]
        due = [a for a in reported if now - max(a.sampled, a.moved, a.started) >= self._wait(a)]
        if not due:
            return []
        threads = sys._current_frames()  # noqa: SLF001 — documented, and the only way to another thread's stack
        found = [
            Running(
                *a.key, a.number, now - a.started, a.step, a.progress, *_describe(_relevant(_stack(threads, a.thread)))
            )
            for a in due
        ]
        for attempt in due:
            attempt.sampled = now
        # The thread of an attempt that ended meanwhile may already run the next one.
        return [sample for a, sample in zip(due, found, strict=True) if not a.ended]

    def _wait(self, attempt: Attempt) -> float:
        return SAMPLE_SECONDS if attempt.sampled > attempt.moved else self.limit(attempt.actor)


def place_of(thread: int | None) -> str:
    """Return what a thread executes, as `file:line in function`; the app's own code is preferred to packages and
    Python's library.
    """
    found = sys._current_frames().get(thread or 0)  # noqa: SLF001 — as above
    return _describe(_frames(found))[0]


def _stack(threads: dict[int, FrameType], thread: int) -> list[FrameType]:
    """Return the frames of a worker thread, innermost first: the actor's, or those of the coroutine that it awaits."""
    frames = _frames(threads.get(thread))
    if not any(_module(frame) == "dramatiq.asyncio" for frame in frames):
        return frames
    coroutine = next((f.f_locals.get("coro") for f in frames if f.f_code.co_name == "run_coroutine"), None)
    loop = get_event_loop_thread()
    if getattr(coroutine, "cr_running", False) and loop is not None and loop.ident is not None:
        return _frames(threads.get(loop.ident))
    return _awaiting(coroutine) or frames


def _frames(frame: FrameType | None) -> list[FrameType]:
    return [] if frame is None else [frame for frame, _ in walk_stack(frame)]


def _awaiting(coroutine: Any) -> list[FrameType]:
    """Return the frames of a chain of coroutines, generators and async generators that await each other."""
    frames: list[FrameType] = []
    while coroutine is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(coroutine, f"{kind}_frame")), None)
        frame = getattr(coroutine, f"{kind}_frame", None)
        if frame is None:
            break
        frames.insert(0, frame)
        coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
    return frames


def _relevant(frames: Sequence[FrameType]) -> Sequence[FrameType]:
    """Return the frames of the actor and of its calls; frames of Dramatiq and Callboard only if there are no others."""
    bottom = next((n for n, frame in enumerate(frames) if _module(frame) in BOTTOM), None)
    return [frame for frame in frames[:bottom] if not _module(frame).startswith(INTERNAL)] or frames


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _describe(frames: Sequence[FrameType]) -> tuple[str, str]:
    """Return the place in the user's own code, and the text of the stack, each frame with its line of code."""
    if not frames:
        return GONE, GONE
    stack = StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    lines = (f"{_at(one)}\n    {one.line[:NAME_CHARS]}" if one.line else _at(one) for one in stack[:STACK_FRAMES])
    return clean(_at(min(stack, key=_distance)), NAME_CHARS), clean("\n".join(lines), STACK_CHARS)


def _distance(one: FrameSummary) -> int:
    """0 for the user's own code, 1 for an installed package, 2 for Python."""
    return 1 if one.filename.startswith(PACKAGES) else 2 if one.filename.startswith((PYTHON, "<")) else 0


def _at(one: FrameSummary) -> str:
    return f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno} in {one.name}"
