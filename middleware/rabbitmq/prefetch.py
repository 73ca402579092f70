"""Decides how many messages a worker process holds: enough to cover a flush, and few enough not to hoard slow items.
Also decides when a process gives back messages that its threads can't begin.
"""

import math
import time

#: Seconds of work that the prefetch covers: the window of a flush and its commit. While commits are slow, for example
#: when many processes record outcomes of one job, it covers two commits, up to the second number: with fewer messages
#: each commit would have fewer outcomes, and more processes would be slower together.
COVER_SECONDS, MOST_COVER_SECONDS = 0.08, 1.0
#: The largest prefetch, in messages.
MAX_PREFETCH = 500
#: The most messages by which it grows beyond that, for messages whose outcome waits for a lock.
MAX_EXTRA = 1_000
#: Seconds between two measurements; fewer at first, so that a worker is fast soon after its start.
MEASURE_SECONDS = 0.10
FIRST_MEASURE_SECONDS = 0.02
#: Consecutive measurements that must ask for less before the prefetch shrinks.
SHRINK_AFTER_MEASUREMENTS = 10
#: Seconds between two checks whether the threads begin messages, and consecutive checks that must see none before
#: messages are given back.
LOOK_SECONDS = 0.04
STANDSTILL_LOOKS = 3


class Prefetch:
    """The prefetch of one consumer: deep enough to cover a flush for fast actors, about the number of threads for slow
    ones.

    `depth` is the prefetch in messages. `threads` is the number of worker threads; None keeps the depth as it is. The
    depth starts as for slow actors, because shrinking needs a new subscription, which gets messages in addition to
    those that are held.
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
        # At most one message per thread gives no rate: all may have begun and ended together, and be slow.
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
        """Return to the depth for slow actors, until a measurement asks for more."""
        if self._threads is not None:
            self.depth, self._shrinking = min(self.depth, wanted_prefetch(self._threads, 0.0)), 0


def wanted_prefetch(threads: int, rate: float, carried: float = 1.0, cover: float = COVER_SECONDS) -> int:
    """Return the prefetch, in messages, that covers `cover` seconds of work. The process has `threads` worker threads
    and settles `rate` messages a second with `carried` items each. Each thread gets at least one message, because the
    next messages may carry one item.
    """
    least = threads + math.ceil(threads / 4)
    wanted = max(least, math.ceil(least / carried) + math.ceil(rate * cover))
    return min(max(wanted, 2), max(MAX_PREFETCH, threads))


class Standstill:
    """Detects that a process has begun no message for a while."""

    def __init__(self) -> None:
        self._looked_at = 0.0  # monotonic
        self._admitted = 0
        self._looks = 0  # consecutive looks without a new message

    def look(self, now: float, admitted: int) -> bool:
        """Return True after each `STANDSTILL_LOOKS` consecutive looks without a new message; False if the next look is
        not due yet.

        `now` is monotonic, `admitted` counts the messages that threads began to admit. A late look is not counted,
        because the whole process may have been stopped.
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
