"""Messages that carry many items: which of those that follow one another go into one."""

from collections.abc import Sequence
from dataclasses import replace

from callboard.sql.rows import Outgoing

#: Bytes of arguments that one message carries of many items.
CHUNK_BYTES = 1_048_576


def bundled(items: Sequence[Outgoing], chunk: int) -> list[Outgoing]:
    """Runs of at most `chunk` items as one message each. What has options of its own or ran before goes by itself."""
    if chunk == 1:
        return list(items)
    runs: list[list[Outgoing]] = []
    size = 0
    for out in items:
        plain = out.attempt == 1 and out.options is None
        size += len(out.args)
        if not runs or not plain or not _open(runs[-1], chunk, out) or size > CHUNK_BYTES:
            runs.append([])
            size = len(out.args)
        runs[-1].append(out)
    return [replace(first, more=tuple(more)) if more else first for first, *more in runs]


def _open(run: Sequence[Outgoing], chunk: int, out: Outgoing) -> bool:
    first = run[0]
    return len(run) < chunk and first.attempt == 1 and first.options is None and first.suspect == out.suspect
