"""Joins bulk items into chunks: messages that carry many items."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from callboard.sql.rows import Outgoing, PublishClaim

#: The most bytes of arguments in one chunk.
CHUNK_BYTES = 1_048_576
#: Where the publisher chooses the size of a chunk: its duration in seconds by the mean of its actor, and its most
#: items. Larger chunks save little.
CHUNK_SECONDS = 0.03
MAX_CHUNK_ITEMS = 100


def chunk_size(claim: PublishClaim, left: int) -> int:
    """Return how many items the next message of a claimed job carries; `left`: how many may still be published.

    Each worker thread gets at least two of the messages that are left, so the last items are sent singly. So are all
    items of an actor without a known mean, and all items while no worker has the actor: the next workers may be without
    Callboard.
    """
    if claim.chunk is not None:
        return claim.chunk
    if claim.mean_seconds is None or not claim.threads:
        return 1
    in_time = CHUNK_SECONDS / max(claim.mean_seconds, CHUNK_SECONDS / MAX_CHUNK_ITEMS)
    return max(1, int(min(in_time, left / 2 / claim.threads)))


def into_chunks(items: Sequence[Outgoing], size_at: Callable[[int], int]) -> list[Outgoing]:
    """Return messages that carry consecutive items: at most `CHUNK_BYTES` and `size_at(number of the first item)` items
    each.

    An item with its own options, or one that is not at its first attempt, gets a message of its own.
    """
    runs: list[list[Outgoing]] = []
    size = chunk = 0
    for out in items:
        size += len(out.args)
        if not runs or not _fits(runs[-1], chunk, out) or size > CHUNK_BYTES:
            runs.append([])
            size, chunk = len(out.args), size_at(out.item)
        runs[-1].append(out)
    return [replace(first, more=tuple(more)) if more else first for first, *more in runs]


def _fits(run: Sequence[Outgoing], chunk: int, out: Outgoing) -> bool:
    first = run[0]
    return len(run) < chunk and _is_plain(first) and _is_plain(out) and first.suspect == out.suspect


def _is_plain(out: Outgoing) -> bool:
    return out.attempt == 1 and out.options is None
