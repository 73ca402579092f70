"""The ids that a tracked message carries in an option of its own: ``{"callboard": {"job": …, "item": …, …}}``."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

OPTION: Final = "callboard"
#: The option of a chunk, a message that carries many items: ``[{"item": …, "args": […], "kwargs": {…}}, …]``.
CHUNK: Final = "callboard_chunk"
#: The first numbers that are too large for PostgreSQL's types bigint and integer.
BIGINT, INTEGER = 2**63, 2**31


class Stamp(NamedTuple):
    """The attempt that a message carries, the epoch of its job when it was published, whether the message may be a
    duplicate (`suspect`), and whether its job is an actor's standing job.
    """

    job: int
    item: int
    attempt: int
    epoch: int = 0
    suspect: bool = False
    standing: bool = False

    def option(self) -> dict[str, Any]:
        """Return the option's value; fields that are false are left out."""
        return {name: value for name, value in self._asdict().items() if value is not False}

    def encode(self) -> bytes:
        """Return the option's value as JSON. It is formatted directly for speed, because every message has one."""
        suspect = b',"suspect":true' if self.suspect else b""
        standing = b',"standing":true' if self.standing else b""
        return b'{"job":%d,"item":%d,"attempt":%d,"epoch":%d%s%s}' % (*self[:4], suspect, standing)


def read(options: Mapping[str, Any]) -> Stamp | None:
    """Return a message's stamp; None if its producer has no Callboard, or the stamp is malformed."""
    value = options.get(OPTION)
    if type(value) is not dict:
        return None
    job, item, attempt = value.get("job"), value.get("item"), value.get("attempt")
    epoch = value.get("epoch", 0)
    if not type(job) is type(item) is type(attempt) is type(epoch) is int:
        return None
    if not (0 < job < BIGINT and 0 <= item < INTEGER and 0 < attempt < INTEGER and 0 <= epoch < INTEGER):
        return None  # the database would refuse it
    return Stamp(job, item, attempt, epoch, value.get("suspect") is True, value.get("standing") is True)


def without(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message's own options: without the stamp, and without the due time of a delayed copy."""
    return {name: value for name, value in options.items() if name not in (OPTION, "eta")}
