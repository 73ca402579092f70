"""How many messages a worker process holds: enough to cover a flush, not so many that it hoards slow items."""

import math
import time

#: Seconds of work that the prefetch covers, the window and the commit of a flush included; and its upper limit.
COVER_SECONDS = 0.08
MAX_PREFETCH = 500
#: Seconds between two looks at the prefetch, and to the first, since a worker that starts is to be fast at once; and
#: looks in a row after which it shrinks.
LOOK_SECONDS = 0.10
FIRST_LOOK_SECONDS = 0.02
SHRINK_AFTER_LOOKS = 10


class Prefetch:
    """How many messages to hold: enough to cover a flush for fast actors, about the number of threads for slow ones.

    A deep prefetch would hoard slow items that idle workers can't get; a shallow one starves a fast worker.
    """

    def __init__(self, depth: int, threads: int | None) -> None:
        self.depth = depth
        self._threads = threads
        self._looked = time.monotonic()
        self._pause = FIRST_LOOK_SECONDS
        self._settled = 0
        self._shrinking = 0

    def due(self, now: float, settled: int) -> bool:
        """Look at what was settled since the last look; True when `depth` changed."""
        if self._threads is None or now - self._looked < self._pause:
            return False
        if not settled:
            self._looked = now
            return False
        self._pause = min(self._pause * 2, LOOK_SECONDS)
        rate = (settled - self._settled) / (now - self._looked)
        self._looked, self._settled = now, settled
        wanted = wanted_prefetch(self._threads, rate)
        self._shrinking = self._shrinking + 1 if wanted * 2 < self.depth else 0
        if wanted * 2 > self.depth * 3 or self._shrinking >= SHRINK_AFTER_LOOKS:
            self.depth, self._shrinking = wanted, 0
            return True
        return False


def wanted_prefetch(threads: int, rate: float) -> int:
    """The prefetch for a process of so many threads that settles `rate` messages a second."""
    return min(
        max(threads + math.ceil(threads / 4) + math.ceil(rate * COVER_SECONDS), 2), max(MAX_PREFETCH, threads)
    )
