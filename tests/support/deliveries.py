"""A message as the consumer gives it, without a consumer."""

from collections.abc import Sequence
from typing import Any

from dramatiq import Message
from dramatiq.broker import MessageProxy

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.delivery import Acks, Delivery, Tag
from callboard.middleware.message.stamp import Stamp


class RecordedAcks:
    """Notes what is acknowledged and rejected."""

    held = 0

    def __init__(self) -> None:
        self.acknowledged: list[Tag] = []
        self.rejected: list[Tag] = []

    def deliveries(self) -> list[Delivery]:
        return []

    def release(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        self.acknowledged += acks
        self.rejected += nacks


class Delivered(MessageProxy):
    """A copy of the message of an attempt at an item of the actor `work`."""

    delivery: Delivery

    def __init__(
        self, stamp: Stamp, *, redelivered: bool = False, acks: Acks | None = None, tag: Tag = 1,
        args: tuple[object, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(Message("default", "work", args, {}, {"callboard": stamp.option()}))
        self.delivery = Delivery(acks or RecordedAcks(), tag, stamp, redelivered)


def make_attempt(job: int = 1, item: int = 0, number: int = 1, **fields: Any) -> Attempt:
    """An attempt of the actor `work` that nothing delivered."""
    return Attempt(job, item, number, [], {}, actor="work", **fields)
