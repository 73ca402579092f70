"""A message as the consumer gives it, without a consumer."""

from callboard.middleware.message.stamp import Stamp
from callboard.middleware.rabbitmq.acks import AckTracker


class Delivered:
    """A copy of the message of an attempt; its connection is gone, so that nothing is acknowledged."""

    actor_name = "work"
    deferred = failed = False
    tag = 1

    def __init__(self, mark: Stamp, *, redelivered: bool = False) -> None:
        self.options = {"callboard": mark.option()}
        self.redelivered = redelivered
        self.acks = AckTracker(None, None)
        self.acks.dead = True
