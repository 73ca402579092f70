"""Checks of stages that both the Python API and the web app use."""

import re
from collections.abc import Sequence

from callboard.sql.signature import Signature

#: The choices after a stage with failed items: whether the next stages begin.
ON_FAILURE = ("stop", "go on")
#: The path of a function, "module:name".
PATH = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


def check_on_failure(given: str) -> None:
    """Raise ValueError for anything but the words of ON_FAILURE."""
    if given not in ON_FAILURE:
        raise ValueError(f"on_failure must be 'stop' or 'go on', not {given!r}")


def check_path(make: str) -> str:
    """Return the path of a function. Raises ValueError for a malformed path."""
    if not PATH.fullmatch(make):
        raise ValueError(f"make must be a function, or its path as 'module:name', not {make!r:.200}")
    return make


def check_lane(signatures: Sequence[Signature | None], by: str) -> None:
    """Raise ValueError if the arguments of all actors are known, and none has the argument `by` for lanes. A stage
    without it is one lane.
    """
    known = [signature for signature in signatures if signature is not None]
    if len(known) == len(signatures) and not any(signature.has_argument(by) for signature in known):
        known[0].check_lane(by)
