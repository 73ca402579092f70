"""The ids a tracked message carries, as one option of it: ``{"callboard": {"job": …, "item": …, …}}``."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

OPTION: Final = "callboard"
#: The option of a message that carries a run of items: ``[{"item": …, "args": […], "kwargs": {…}}, …]``.
CHUNK: Final = "callboard_chunk"
#: The ends of PostgreSQL's types.
BIGINT, INTEGER = 2**63, 2**31


class Stamp(NamedTuple):
    """Which attempt at which item a message carries, the job's epoch then, and whether it may be a second copy."""

    job: int
    item: int
    attempt: int
    epoch: int = 0
    suspect: bool = False

    def option(self) -> dict[str, Any]:
        """The option's value; `suspect` only where it is so, since most messages are not."""
        value: dict[str, Any] = {
            "job": self.job,
            "item": self.item,
            "attempt": self.attempt,
            "epoch": self.epoch,
        }
        if self.suspect:
            value["suspect"] = True
        return value

    def encode(self) -> bytes:
        """The option's value as JSON, put together by hand: there is one a message."""
        suspect = b',"suspect":true' if self.suspect else b""
        return b'{"job":%d,"item":%d,"attempt":%d,"epoch":%d%s}' % (*self[:4], suspect)


def read(options: Mapping[str, Any]) -> Stamp | None:
    """The stamp of a message, or None for one that was sent by somebody who knows nothing of Callboard."""
    value = options.get(OPTION)
    if type(value) is not dict:
        return None
    job, item, attempt, epoch = (
        value.get("job"),
        value.get("item"),
        value.get("attempt"),
        value.get("epoch", 0),
    )
    if not type(job) is type(item) is type(attempt) is type(epoch) is int:
        return None
    if not (0 < job < BIGINT and 0 <= item < INTEGER and 0 < attempt < INTEGER and 0 <= epoch < INTEGER):
        return None  # the database would refuse it
    return Stamp(job, item, attempt, epoch, value.get("suspect") is True)


def without(options: Mapping[str, Any]) -> dict[str, Any]:
    """The message's own options: no stamp, and no time at which a parked copy was due."""
    return {name: value for name, value in options.items() if name not in (OPTION, "eta")}
