"""The error of a failed try to deliver a callback."""


class Undelivered(Exception):
    """A try failed; the message says why. `last`: the receiver wants no other try."""

    def __init__(self, why: str, *, last: bool = False) -> None:
        super().__init__(why)
        self.last = last
