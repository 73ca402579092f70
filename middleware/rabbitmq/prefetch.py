"""How many messages a worker process holds: enough to cover a flush, and few enough not to hoard slow items."""

import math
import time

#: Seconds of work that the prefetch covers: a flush's window and its commit.
COVER_SECONDS = 0.08
#: The largest prefetch, in messages.
MAX_PREFETCH = 500
#: The most messages by which it grows beyond that for those whose outcome waits for a lock.
MAX_EXTRA = 1_000
#: Seconds between two measurements; shorter at first, so that a worker is fast soon after its start.
MEASURE_SECONDS = 0.10
FIRST_MEASURE_SECONDS = 0.02
#: Measurements in a row that must ask for less before the prefetch shrinks.
SHRINK_AFTER_MEASUREMENTS = 10


class Prefetch:
    """The prefetch of one consumer: deep enough to cover a flush for fast actors, about the number of threads for slow
    ones.

    `depth` is the prefetch in messages. `threads` is the number of worker threads; None keeps the depth as it is.
    """

    def __init__(self, depth: int, threads: int | None) -> None:
        self.depth = depth
        self._threads = threads
        self._measured_at = time.monotonic()
        self._pause = FIRST_MEASURE_SECONDS
        self._settled = 0
        self._shrinking = 0

    def adapt(self, now: float, settled: int, held_up: int = 0) -> bool:
        """Adapt `depth` to the rate of settled messages; return whether it changed.

        `now` is monotonic, `settled` counts the messages settled since the start, `held_up` those that have ended and
        whose outcome waits for a lock: they must not keep others away. Nothing is measured before its time.
        """
        if self._threads is None or now - self._measured_at < self._pause:
            return False
        if not settled and not held_up:
            self._measured_at = now
            return False
        self._pause = min(self._pause * 2, MEASURE_SECONDS)
        rate = (settled - self._settled) / (now - self._measured_at)
        self._measured_at, self._settled = now, settled
        wanted = wanted_prefetch(self._threads, rate) + min(2 * held_up, MAX_EXTRA)
        self._shrinking = self._shrinking + 1 if wanted * 2 < self.depth else 0
        if wanted * 2 > self.depth * 3 or self._shrinking >= SHRINK_AFTER_MEASUREMENTS:
            self.depth, self._shrinking = wanted, 0
            return True
        return False


def wanted_prefetch(threads: int, rate: float) -> int:
    """Return the prefetch for a process with `threads` worker threads that settles `rate` messages a second."""
    wanted = threads + math.ceil(threads / 4) + math.ceil(rate * COVER_SECONDS)
    return min(max(wanted, 2), max(MAX_PREFETCH, threads))
