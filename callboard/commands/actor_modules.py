"""The actors that a command imports: the shipped ones, and those of the modules in CALLBOARD_ACTORS."""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import dramatiq

from callboard.commands.errors import CommandError
from callboard.middleware.tracking import runtime_of
from callboard.sql import settings
from callboard.sql.pool import running_here


def assemble() -> dramatiq.Broker:
    """Import these modules and return their broker. Raises CommandError for a module that can't be imported."""
    use_running_stack()
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `dramatiq` does: a user's module is in the current folder
    quiet = logging.getLogger("callboard")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # without AMQP_URL a command can still store rows, and workers publish them
    try:
        importlib.import_module("callboard.actors")
    except ImportError as error:
        raise CommandError(str(error)) from error
    finally:
        quiet.setLevel(level)
    return dramatiq.get_broker()


@contextmanager
def assembled() -> Iterator[dramatiq.Broker]:
    """Like `assemble`, for a block; at its end all sent messages are published or stored."""
    broker = assemble()
    try:
        yield broker
    finally:
        runtime_of(broker).close()


def use_running_stack() -> None:
    """Set DATABASE_URL and AMQP_URL to the addresses of a `callboard up` that runs in this folder. If DATABASE_URL is
    set, do nothing, because the broker belongs to the database of `callboard up`.
    """
    if settings.DATABASE_URL.text:
        return
    running = running_here()
    for setting in (settings.DATABASE_URL, settings.AMQP_URL):
        url = running.get(setting.name.lower())
        if url and not setting.text:
            os.environ[setting.name] = url
