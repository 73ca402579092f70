"""The mean duration of each actor's attempts in this process. Publishers choose the size of chunks by it, and attempts
that take far longer count as hanging.
"""

from dataclasses import dataclass, field

#: Attempts of an actor that must have ended before its mean is reported. If fewer ended since, the last mean fills the
#: gap.
MIN_ATTEMPTS = 20


@dataclass(slots=True)
class Durations:
    """The mean seconds of an attempt, by actor. Calls must not overlap."""

    _new: dict[str, list[float]] = field(default_factory=dict)  # since `take`: count of attempts, sum of seconds
    _mean: dict[str, float] = field(default_factory=dict)

    def add(self, actor: str, seconds: float) -> None:
        """Count an attempt that ended; `seconds`: its duration."""
        new = self._new.get(actor)
        if new is None:
            new = self._new[actor] = [0.0, 0.0]
        new[0] += 1
        new[1] += seconds

    def typical(self, actor: str) -> float:
        """Return the mean seconds, even of few attempts; 0 if none has ended."""
        if (mean := self._mean.get(actor)) is not None:
            return mean
        count, seconds = self._new.get(actor, (1, 0.0))
        return seconds / count

    def take(self) -> dict[str, float]:
        """Return {actor: mean seconds} for actors with attempts that ended since the last call, and `MIN_ATTEMPTS` in
        all.

        When an actor becomes slower or faster, its mean follows within `MIN_ATTEMPTS` attempts.
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
