"""The error of a failed delivery of a callback."""


class Undelivered(Exception):
    """A try failed; the text says why. `last`: there must be no other try."""

    def __init__(self, why: str, *, last: bool = False) -> None:
        super().__init__(why)
        self.last = last
