"""Actors for `dramatiq callboard.actors`: those in this folder, and those of the modules in ``CALLBOARD_ACTORS``."""

import importlib
import pkgutil
from collections.abc import Iterable

import callboard
from callboard.sql import settings


class NotImported(ImportError):
    """A module of actors can't be imported; the message says which and why."""


def load(names: str, whose: str = "CALLBOARD_ACTORS names") -> None:
    """Import modules by their names, between which are commas or spaces. Raises NotImported."""
    for name in names.replace(",", " ").split():
        try:
            importlib.import_module(name)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise NotImported(f"{whose} {name!r}, which can't be imported: {why}") from error


def modules(folders: Iterable[str]) -> str:
    """The names of the modules in this folder: a clone may have more of them than those that ship."""
    return " ".join(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(folders))


# Actors belong to the broker that is there when they are declared.
callboard.install()
load(modules(__path__), "the folder actors has")
load(settings.ACTORS.get())
