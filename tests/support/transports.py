"""A transport without a broker."""

from collections.abc import Callable, Sequence

from callboard.middleware.publish.transport import Answer
from callboard.sql.rows import Outgoing


class StubTransport:
    """Takes every message and reports empty queues. `depth_calls` counts the questions."""

    trouble: str | None = None
    takes_chunks = False
    in_order = True
    while_waiting: Callable[[], None] | None = None

    def __init__(self) -> None:
        self.depth_calls = 0

    def name(self) -> str | None:
        return None

    def publish(self, batch: Sequence[Outgoing]) -> list[Answer]:
        return [True] * len(batch)

    def depth(self, queue: str) -> int | None:
        self.depth_calls += 1
        return 0

    def serve(self, *, reconnect: bool = False) -> None:
        pass

    def close(self) -> None:
        pass
