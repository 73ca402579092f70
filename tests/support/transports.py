"""A way to a broker without a broker: a test says what it answers."""

from collections.abc import Sequence

from callboard.sql.rows import Outgoing


class StubTransport:
    """Takes every message, and says that nothing lies in any queue; `asked`: how often it was."""

    trouble: str | None = None
    carries = False
    in_order = True

    def __init__(self) -> None:
        self.asked = 0

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        return [True] * len(batch)

    def depth(self, queue: str) -> int | None:
        self.asked += 1
        return 0

    def serve(self, *, mend: bool = False) -> None:
        pass

    def close(self) -> None:
        pass
