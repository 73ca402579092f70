"""A middleware whose hook ends the worker thread that runs item 0, imported beside the actors."""

from typing import Any

import dramatiq
from dramatiq.middleware import Middleware, Shutdown


class Ending(Middleware):
    """As one that a time limit strikes each time."""

    def after_process_message(self, broker: dramatiq.Broker, message: Any, **_: Any) -> None:
        if message.kwargs.get("number") == 0:
            raise Shutdown("out of a hook")


dramatiq.get_broker().add_middleware(Ending())
