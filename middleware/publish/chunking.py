"""Bulk items become chunks: messages that carry many items."""

from collections.abc import Sequence
from dataclasses import replace

from callboard.sql.rows import Outgoing

#: Bytes of arguments that one chunk carries.
CHUNK_BYTES = 1_048_576


def into_chunks(items: Sequence[Outgoing], chunk: int) -> list[Outgoing]:
    """Return messages that carry up to `chunk` consecutive items and `CHUNK_BYTES` each.

    An item with options of its own, or one that ran before, gets a message of its own.
    """
    if chunk == 1:
        return list(items)
    runs: list[list[Outgoing]] = []
    size = 0
    for out in items:
        size += len(out.args)
        if not runs or not _fits(runs[-1], chunk, out) or size > CHUNK_BYTES:
            runs.append([])
            size = len(out.args)
        runs[-1].append(out)
    return [replace(first, more=tuple(more)) if more else first for first, *more in runs]


def _fits(run: Sequence[Outgoing], chunk: int, out: Outgoing) -> bool:
    first = run[0]
    return len(run) < chunk and _is_plain(first) and _is_plain(out) and first.suspect == out.suspect


def _is_plain(out: Outgoing) -> bool:
    return out.attempt == 1 and out.options is None
