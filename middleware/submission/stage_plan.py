"""Checks stages before they are made: what both the face and the web app need of them."""

import re
from collections.abc import Sequence

from callboard.sql.signature import Signature

#: The consequence of failed items of a stage for the stages after it.
ON_FAILURE = ("stop", "go on")
#: How a function is named: "module:name".
PATH = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


def check_on_failure(given: str) -> None:
    """Raise ValueError for anything but these words."""
    if given not in ON_FAILURE:
        raise ValueError(f"on_failure must be 'stop' or 'go on', not {given!r}")


def check_path(make: str) -> str:
    """Return the path of a function; raises ValueError for a text that is none."""
    if not PATH.fullmatch(make):
        raise ValueError(f"make must be a function, or its path as 'module:name', not {make!r:.200}")
    return make


def check_lane(signatures: Sequence[Signature | None], by: str) -> None:
    """Raise ValueError unless the actor of a stage has the argument that lanes go by: other stages are one lane."""
    known = [signature for signature in signatures if signature is not None]
    if len(known) == len(signatures) and not any(signature.has_argument(by) for signature in known):
        known[0].check_lane(by)
