"""The arguments that an actor takes. Workers announce them, so a submitting process need not import the actor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

#: The most shapes of calls that a signature caches.
MAX_SHAPES = 100


@dataclass(frozen=True, slots=True)
class Signature:
    """The argument names that the actor takes by position, in order, and by keyword; its required arguments; and
    whether it takes any others.
    """

    actor: str
    positional: tuple[str, ...] = ()
    keyword: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    any_positional: bool = False
    any_keyword: bool = False
    #: Shapes of calls that fit: the number of positional arguments, with the names of keyword arguments if there are
    #: any.
    _fitting: set[int | tuple[Any, ...]] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def from_json(cls, actor: str, given: Mapping[str, Any] | None) -> Self | None:
        """Read the column `signature` of an actor; None if it is not known."""
        if given is None:
            return None
        return cls(
            actor, tuple(given["positional"]), frozenset(given["keyword"]), frozenset(given["required"]),
            given["any_positional"], given["any_keyword"],
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Return the value of the column `signature`."""
        return {
            "positional": self.positional, "keyword": sorted(self.keyword), "required": sorted(self.required),
            "any_positional": self.any_positional, "any_keyword": self.any_keyword,
        }  # fmt: skip

    def misfit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Return why a call with these arguments does not fit, or None if it fits."""
        shape = (len(args), *kwargs) if kwargs else len(args)
        if shape in self._fitting:
            return None
        by_keyword = self.required.difference(self.positional[: len(args)]) if args else self.required
        if (
            len(args) <= len(self.positional)
            and by_keyword <= kwargs.keys()
            and (kwargs.keys() <= self.keyword or (self.any_keyword and by_keyword <= self.keyword))
        ):
            if len(self._fitting) < MAX_SHAPES:
                self._fitting.add(shape)
            return None
        strange = [] if self.any_keyword else [name for name in kwargs if name not in self.keyword]
        missing = self.required - set(self.positional[: len(args)]) - (kwargs.keys() & self.keyword)
        wrong = []
        if len(args) > len(self.positional) and not self.any_positional:
            wrong.append(f"takes {len(self.positional)} arguments by position, not {len(args)}")
        if strange:
            wrong.append(f"has no argument {_names(strange)}")
        if missing:
            wrong.append(f"needs {_names(sorted(missing))}")
        return f"{self.actor} {' and '.join(wrong)}" if wrong else None

    def has_argument(self, by: str) -> bool:
        """Return whether the actor has an argument with this name, or at this position."""
        if by.isdecimal():
            return self.any_positional or int(by) < len(self.positional)
        return self.any_keyword or by in self.keyword

    def is_left_out(self, by: str | int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether a call omits the argument with this name, or at this position: it passes it neither way."""
        if isinstance(by, int):
            return len(args) <= by < len(self.positional) and self.positional[by] not in kwargs
        return by in self.keyword and by not in kwargs and by not in self.positional[: len(args)]

    def check_lane(self, by: str | None) -> None:
        """Raise ValueError if the actor has no argument `by`, a name or a position, for lanes."""
        if by is not None and not self.has_argument(by):
            by_position = [
                f"{place} ({name})" for place, name in enumerate(self.positional) if name not in self.keyword
            ]
            has = [*by_position, *(repr(name) for name in self.positional if name in self.keyword)]
            has += map(repr, sorted(self.keyword.difference(self.positional)))
            raise ValueError(f"concurrency_by: {self.actor} has no argument {by!r}; it has {', '.join(has)}")


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
