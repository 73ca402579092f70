"""A part of the journal that fails for ever with an error that no code expects, imported beside the actors.

CALLBOARD_TEST_BREAKS names the part. It fails once the folder CALLBOARD_TEST_BREAKS_IN holds a file `broken`.
"""

import os
from pathlib import Path
from typing import Any

from callboard.middleware.attempts.in_flight import InFlight
from callboard.middleware.process import fatal_exit

BREAKS, FOLDER = "CALLBOARD_TEST_BREAKS", "CALLBOARD_TEST_BREAKS_IN"


def install(part: str, sign: Path) -> None:
    """Put the failure into the product's method, and wait less for actors that don't end."""
    fatal_exit.EXIT_SECONDS = 4.0
    plain: Any = getattr(InFlight, part)

    def failing(*args: Any) -> Any:
        if sign.exists():
            raise LookupError(f"{part} fails")
        return plain(*args)

    setattr(InFlight, part, failing)


if os.environ.get(BREAKS):
    install(os.environ[BREAKS], Path(os.environ[FOLDER]) / "broken")
