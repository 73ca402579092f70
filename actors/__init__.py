"""Actors for `dramatiq callboard.actors`: those in this folder, and those of the modules in CALLBOARD_ACTORS."""

import importlib
import pkgutil
from collections.abc import Iterable

import callboard
from callboard.sql import settings


class NotImported(ImportError):
    """A module of actors can't be imported. The text says which one, and why."""


def load(names: str, whose: str = "CALLBOARD_ACTORS names") -> None:
    """Import modules by their names, with commas or spaces between. `whose` begins the text of an error.

    Raises NotImported.
    """
    for name in names.replace(",", " ").split():
        try:
            importlib.import_module(name)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise NotImported(f"{whose} {name!r}, which can't be imported: {why}") from error


def modules(folders: Iterable[str]) -> str:
    """Return the names of the modules in these folders, joined by spaces. A clone may add its own modules here."""
    return " ".join(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(folders))


# Before any actor is declared, because an actor belongs to the broker that is set at that moment.
callboard.install()
load(modules(__path__), "the folder actors has")
load(settings.ACTORS.get())
