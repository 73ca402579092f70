"""How many messages a worker process holds: enough to cover a flush, and few enough not to hoard slow items; and when
it gives back what its threads don't get to.
"""

import math
import time

#: Seconds of work that the prefetch covers: a flush's window and its commit. While commits take long, as when many
#: processes record outcomes of one job, it covers two of them, up to the most: with less in hand each commit would have
#: fewer outcomes, and all processes together would be the slower, the more there are.
COVER_SECONDS, MOST_COVER_SECONDS = 0.08, 1.0
#: The largest prefetch, in messages.
MAX_PREFETCH = 500
#: The most messages by which it grows beyond that for those whose outcome waits for a lock.
MAX_EXTRA = 1_000
#: Seconds between two measurements; shorter at first, so that a worker is fast soon after its start.
MEASURE_SECONDS = 0.10
FIRST_MEASURE_SECONDS = 0.02
#: Measurements in a row that must ask for less before the prefetch shrinks.
SHRINK_AFTER_MEASUREMENTS = 10
#: Seconds between two looks at what the threads begin; and looks in a row that must see nothing begin before messages
#: are given back.
LOOK_SECONDS = 0.04
STANDSTILL_LOOKS = 3


class Prefetch:
    """The prefetch of one consumer: deep enough to cover a flush for fast actors, about the number of threads for slow
    ones.

    `depth` is the prefetch in messages. `threads` is the number of worker threads; None keeps the depth as it is. It
    begins as for slow actors: to shrink takes a new subscription, whose messages come beside those that are held.
    """

    def __init__(self, depth: int, threads: int | None) -> None:
        self.depth = depth if threads is None else min(depth, wanted_prefetch(threads, 0.0))
        self._threads = threads
        self._measured_at = time.monotonic()
        self._pause = FIRST_MEASURE_SECONDS
        self._settled = self._settled_items = 0
        self._shrinking = 0

    def adapt(
        self, now: float, settled: int, items: int | None = None, held_up: int = 0, commit_seconds: float = 0.0
    ) -> bool:
        """Adapt `depth` to the rate of settled messages; return whether it changed.

        `now` is monotonic, `settled` counts the messages settled since the start and `items` what they carried (None:
        one each), `held_up` those that have ended and whose outcome waits for a lock: they must not keep others away;
        `commit_seconds` is what the last commit of outcomes took. Nothing is measured before its time.
        """
        items = settled if items is None else items
        if self._threads is None or now - self._measured_at < self._pause:
            return False
        if not settled and not held_up:
            self._measured_at = now
            return False
        self._pause = min(self._pause * 2, MEASURE_SECONDS)
        count = settled - self._settled
        # No more than one a thread: they may all have begun and ended together, and be slow.
        rate = count / (now - self._measured_at) if count > self._threads else 0.0
        carried = max(1.0, (items - self._settled_items) / max(count, 1))
        self._measured_at, self._settled, self._settled_items = now, settled, items
        cover = min(max(COVER_SECONDS, 2 * commit_seconds), MOST_COVER_SECONDS)
        wanted = wanted_prefetch(self._threads, rate, carried, cover) + min(2 * held_up, MAX_EXTRA)
        self._shrinking = self._shrinking + 1 if wanted * 2 < self.depth else 0
        if wanted * 2 > self.depth * 3 or self._shrinking >= SHRINK_AFTER_MEASUREMENTS:
            self.depth, self._shrinking = wanted, 0
            return True
        return False

    def fall_back(self) -> None:
        """Take the depth for slow actors again, until a measurement asks for more."""
        if self._threads is not None:
            self.depth, self._shrinking = min(self.depth, wanted_prefetch(self._threads, 0.0)), 0


def wanted_prefetch(threads: int, rate: float, carried: float = 1.0, cover: float = COVER_SECONDS) -> int:
    """Return the prefetch for a process with `threads` worker threads that settles `rate` messages a second, of
    `carried` items each: `cover` seconds of work. Each thread has a message in any case: the next ones may carry one
    item.
    """
    least = threads + math.ceil(threads / 4)
    wanted = max(least, math.ceil(least / carried) + math.ceil(rate * cover))
    return min(max(wanted, 2), max(MAX_PREFETCH, threads))


class Standstill:
    """Tells when a process has begun no message for a while."""

    def __init__(self) -> None:
        self._looked_at = 0.0  # monotonic
        self._admitted = 0
        self._looks = 0  # in a row that saw nothing begin

    def look(self, now: float, admitted: int) -> bool:
        """Return True when nothing began for another `STANDSTILL_LOOKS` looks; False before the next look is due.

        `now` is monotonic, `admitted` counts the messages that threads took up. A look that comes late does not count:
        the whole process may have stood still.
        """
        since = now - self._looked_at
        if since < LOOK_SECONDS:
            return False
        self._looked_at = now
        if admitted != self._admitted:
            self._looks, self._admitted = 0, admitted
            return False
        if since >= 2 * LOOK_SECONDS:
            return False
        self._looks += 1
        return self._looks % STANDSTILL_LOOKS == 0
