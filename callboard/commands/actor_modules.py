"""The actors that this process imports: those that ship and those of ``CALLBOARD_ACTORS``."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import dramatiq

from callboard.commands.errors import CommandError
from callboard.middleware.tracking import runtime_of
from callboard.sql.pool import running_here


def assemble() -> dramatiq.Broker:
    """Import them; returns the broker they are on. Raises Fault for a module that can't be imported."""
    os.environ.update(addresses())
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `dramatiq` does: your module lies where you are
    try:
        importlib.import_module("callboard.actors")
    except ImportError as error:
        raise CommandError(str(error)) from error
    return dramatiq.get_broker()


@contextmanager
def assembled() -> Iterator[dramatiq.Broker]:
    """The same for as long as the block; at its end what was sent is on its way."""
    broker = assemble()
    try:
        yield broker
    finally:
        runtime_of(broker).close()


def addresses() -> dict[str, str]:
    """Of the `callboard up` that runs here, as variables: its broker goes with its database, with no other."""
    if os.environ.get("DATABASE_URL"):
        return {}
    found = {"DATABASE_URL": running_here().get("database_url"), "AMQP_URL": running_here().get("amqp_url")}
    return {name: url for name, url in found.items() if url and not os.environ.get(name)}
