"""Finds RabbitMQ and Erlang's port mapper on this machine."""

import os
import shutil
from itertools import chain
from pathlib import Path

# Folders of RabbitMQ's own scripts. Debian's wrappers in the PATH accept only the system's user.
PLACES = (
    "/usr/lib/rabbitmq/bin",
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
)

# Folders in which Erlang may be installed, though they are not in the PATH.
MORE_PATH = ("/opt/homebrew/bin", "/usr/local/bin")


def scripts() -> Path | None:
    """Return the folder of RabbitMQ's own scripts; None if it is not installed."""
    found = [path for place in PLACES for path in Path("/").glob(f"{place.lstrip('/')}/rabbitmq-server")]
    if in_path := shutil.which("rabbitmq-server"):
        found.append(Path(in_path))
    return next((path.parent for path in found if os.access(path, os.X_OK)), None)


def installed() -> bool:
    """Return whether this machine has all programs for a node."""
    return scripts() is not None and epmd() is not None


def epmd() -> Path | None:
    """Return the path of Erlang's port mapper, in the PATH or in Erlang's folder; None if there is none."""
    if found := shutil.which("epmd"):
        return Path(found)
    erl = shutil.which("erl", path=os.pathsep.join([*os.get_exec_path(), *MORE_PATH]))
    home = Path(erl).resolve().parents[1] if erl else Path("/usr/lib/erlang")
    return next(chain(home.glob("erts-*/bin/epmd"), home.glob("lib/erlang/erts-*/bin/epmd")), None)
