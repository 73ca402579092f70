"""How long something takes, on a machine that may have other things to do."""

import time
from pathlib import Path

#: Where Linux tells how many microseconds some process was ready to run and had no processor.
PRESSURE = Path("/proc/pressure/cpu")


def stalled() -> float:
    """Seconds so far in which some process waited for a processor; 0 where the system does not tell."""
    try:
        return int(PRESSURE.read_text(encoding="ascii").partition("total=")[2].split()[0]) / 1e6
    except OSError:
        return 0.0


class Timer:
    """Runs from the moment when it is made."""

    def __init__(self) -> None:
        self._began, self._stalled = time.monotonic(), stalled()

    @property
    def seconds(self) -> float:
        """Seconds since then in which no process waited for a processor: what a limit may be set for. On an idle
        machine these are all of them.
        """
        return max(time.monotonic() - self._began - self.stalled, 0.0)

    @property
    def stalled(self) -> float:
        """The other seconds since then."""
        return stalled() - self._stalled
