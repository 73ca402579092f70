"""What hangs, and where: an attempt that takes far longer than its actor usually does gets its stack looked at."""

import linecache
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from dramatiq.asyncio import get_event_loop_thread

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.failure import NAME_CHARS, clean
from callboard.sql import settings
from callboard.sql.rows import HangSample

#: How many times its actor's typical time an attempt must have taken to be taken for hung.
TIMES = 10.0
#: Seconds between two looks at what hangs.
AGAIN = 10.0
#: How much of an actor's typical time the last attempt is.
WEIGHT = 0.1
#: Frames and characters kept of a stack.
FRAMES = 20
LIMIT = 4_000

#: Whose frames are nobody's business, and those that have nothing but such frames above them.
INTERNAL = ("dramatiq.", "callboard.middleware.", "callboard.sql.")
BOTTOM = ("dramatiq.worker", "dramatiq.asyncio")
PYTHON = sysconfig.get_path("stdlib")
PACKAGES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
#: What is said of an attempt that no thread works on.
GONE = "its thread has ended"

Place = tuple[FrameType, int]


@dataclass(slots=True)
class HangDetector:
    """How long each actor typically takes in this process, and what takes far longer. One thread uses it."""

    least: float = field(default_factory=settings.HUNG_AFTER.get)
    _typical: dict[str, float] = field(default_factory=dict)

    def learn(self, ended: Iterable[tuple[str, float]]) -> None:
        """Attempts ended: of this actor, after so many seconds."""
        for actor, seconds in ended:
            before = self._typical.get(actor, seconds)
            self._typical[actor] = before + WEIGHT * (seconds - before)

    def limit(self, actor: str) -> float:
        """Seconds from which on an attempt of this actor is taken for hung."""
        return max(self.least, TIMES * self._typical.get(actor, 0.0))

    def look(self, attempts: Iterable[Attempt], now: float) -> list[HangSample]:
        """The stacks of those that hang and have not been looked at for a while."""
        due = [a for a in attempts if a.reported and now - max(a.sampled, a.started) >= self._wait(a)]
        if not due:
            return []
        frames = sys._current_frames()  # noqa: SLF001 — documented, and the only way to another thread's stack
        found = [HangSample(*a.key, a.number, *_told(_shown(_places(frames, a.thread)))) for a in due]
        for attempt in due:
            attempt.sampled = now
        # One that ended meanwhile may have left its thread to the next.
        return [stack for a, stack in zip(due, found, strict=True) if not a.ended]

    def _wait(self, attempt: Attempt) -> float:
        return AGAIN if attempt.sampled else self.limit(attempt.actor)


def _places(frames: dict[int, FrameType], thread: int) -> list[Place]:
    """Where a worker thread stands, the innermost first: in the actor, or in the coroutine that it waits for."""
    places = [(frame, frame.f_lineno) for frame in _outwards(frames.get(thread))]
    waiting = next((frame for frame, _ in places if _module(frame) == "dramatiq.asyncio"), None)
    if waiting is None:
        return places
    coroutine = next((f.f_locals.get("coro") for f, _ in places if f.f_code.co_name == "run_coroutine"), None)
    loop = get_event_loop_thread()
    if getattr(coroutine, "cr_running", False) and loop is not None and loop.ident is not None:
        return [(frame, frame.f_lineno) for frame in _outwards(frames.get(loop.ident))]
    return _awaiting(coroutine) or places


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _awaiting(coroutine: Any) -> list[Place]:
    """The chain of what awaits what, of coroutines, generators and asynchronous generators."""
    places: list[Place] = []
    while coroutine is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(coroutine, f"{kind}_frame")), None)
        frame = getattr(coroutine, f"{kind}_frame", None)
        if frame is None:
            break
        places.insert(0, (frame, frame.f_lineno))
        coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
    return places


def _shown(places: Sequence[Place]) -> Sequence[Place]:
    """The frames of the actor and of what it called; those of Dramatiq and Callboard only if there are no others."""
    bottom = next((n for n, (frame, _) in enumerate(places) if _module(frame) in BOTTOM), None)
    shown = [place for place in places[:bottom] if not _module(place[0]).startswith(INTERNAL)]
    return shown or places


def _told(places: Sequence[Place]) -> tuple[str, str]:
    """Where the user's own code stands, and all frames, each with its code below it."""
    if not places:
        return GONE, GONE
    own = min(places, key=lambda place: _distance(place[0]))
    return clean(_at(*own), NAME_CHARS), clean("\n".join(_line(*place) for place in places[:FRAMES]), LIMIT)


def _distance(frame: FrameType) -> int:
    """0: the user's own code, 1: an installed package's, 2: Python's."""
    name = frame.f_code.co_filename
    return 1 if name.startswith(PACKAGES) else 2 if name.startswith((PYTHON, "<")) else 0


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _at(frame: FrameType, line: int) -> str:
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{line} in {code.co_name}"


def _line(frame: FrameType, line: int) -> str:
    text = linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip()
    return f"{_at(frame, line)}\n    {text[:NAME_CHARS]}" if text else _at(frame, line)
