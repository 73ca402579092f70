"""How long each actor takes, by what this process ran: publishers choose by it how many items a message carries, and
attempts that take far longer hang.
"""

from dataclasses import dataclass, field

#: Attempts of an actor that must have ended before its mean is given. Where fewer are new, the mean before stands for
#: the others.
MIN_ATTEMPTS = 20


@dataclass(slots=True)
class Durations:
    """The mean seconds of an attempt, by actor. Calls must not overlap."""

    _new: dict[str, list[float]] = field(default_factory=dict)  # since `take`: attempts, their seconds
    _mean: dict[str, float] = field(default_factory=dict)

    def add(self, actor: str, seconds: float) -> None:
        """Count an attempt that ended."""
        new = self._new.get(actor)
        if new is None:
            new = self._new[actor] = [0.0, 0.0]
        new[0] += 1
        new[1] += seconds

    def typical(self, actor: str) -> float:
        """Return the mean, also where few attempts have ended; 0 where none has."""
        if (mean := self._mean.get(actor)) is not None:
            return mean
        count, seconds = self._new.get(actor, (1, 0.0))
        return seconds / count

    def take(self) -> dict[str, float]:
        """Return the means of the actors of which attempts ended since the last call, and enough are known.

        The mean of an actor that turns slow or fast follows with its next `MIN_ATTEMPTS` attempts.
        """
        found: dict[str, float] = {}
        for actor, (count, seconds) in list(self._new.items()):
            before, missing = self._mean.get(actor), max(MIN_ATTEMPTS - count, 0.0)
            if missing and before is None:
                continue
            mean = (seconds + missing * (before or 0.0)) / (count + missing)
            found[actor] = self._mean[actor] = mean
            del self._new[actor]
        return found
