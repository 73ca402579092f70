"""Actors for `dramatiq callboard.actors`: those that ship, and those of the modules that ``CALLBOARD_ACTORS`` names."""

import importlib
import os

import callboard


class NotImported(ImportError):
    """A module that ``CALLBOARD_ACTORS`` names can't be imported; the message says which and why."""


def load(names: str) -> None:
    """Import modules by their names, between which are commas or spaces. Raises NotImported."""
    for name in names.replace(",", " ").split():
        try:
            importlib.import_module(name)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise NotImported(f"CALLBOARD_ACTORS names {name!r}, which can't be imported: {why}") from error


# Actors belong to the broker that is there when they are declared.
callboard.install()
load("callboard.actors.sources")
load(os.environ.get("CALLBOARD_ACTORS", ""))
