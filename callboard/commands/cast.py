"""The actors that this process imports: those that ship and those of ``CALLBOARD_ACTORS``."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import dramatiq

from callboard.commands.faults import Fault
from callboard.middleware.job import recorder_of
from callboard.sql.pool import running_here


def assemble() -> dramatiq.Broker:
    """Import them; returns the broker they are on. Raises Fault for a module that can't be imported."""
    _adopt_addresses()
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `dramatiq` does: your module lies where you are
    try:
        importlib.import_module("callboard.actors")
    except ImportError as error:
        raise Fault(str(error)) from error
    return dramatiq.get_broker()


@contextmanager
def assembled() -> Iterator[dramatiq.Broker]:
    """The same for as long as the block; at its end what was sent is on its way."""
    broker = assemble()
    try:
        yield broker
    finally:
        recorder_of(broker).close()


def _adopt_addresses() -> None:
    """The broker of the `callboard up` that runs here goes with its database, and with no other."""
    if not os.environ.get("DATABASE_URL") and (url := running_here().get("amqp_url")):
        os.environ.setdefault("AMQP_URL", url)
