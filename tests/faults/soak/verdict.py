"""What a soak comes to: what was wanted against what the record has and what the actors did."""

import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: How much more is growth: of memory by the medians, and the allocator may keep a little; of threads and of open files
#: by what they are at the most, since a connection that was cut is away for some seconds (it has four files).
MORE, MORE_MIB = 1.20, 16.0
MORE_THREADS, MORE_FILES = 3, 10
#: Seconds after a fault within which work goes on, whatever it was.
PROMISED = 60.0
#: Samples without which nothing is said: a minute of them.
ENOUGH = 30


class Found(NamedTuple):
    """An item of the record: what it is, how it ended and should have, how often it ran; whether deaths ended it."""

    what: Hashable
    state: str
    wanted: str
    runs: int
    died: bool


@dataclass
class Account:
    """What is wrong with the items."""

    items: int = 0
    lost: list[Hashable] = field(default_factory=list)
    doubled: list[Hashable] = field(default_factory=list)
    wrong: list[Found] = field(default_factory=list)
    died: int = 0  # failed since three workers died over them: the faults', not a fault


def account(wanted: Counter[Hashable], possible: set[Hashable], found: Iterable[Found]) -> Account:
    """Compare. `possible` may be there once or not: whoever sent it got no answer."""
    made, seen = Account(), Counter[Hashable]()
    for item in found:
        made.items += 1
        made.died += item.died
        done = item.died or (item.runs > 0 and item.state == item.wanted)
        if not done:
            made.wrong.append(item)
        seen[item.what] += 1
    made.lost = sorted((wanted - seen).elements(), key=repr)
    allowed = wanted + Counter({what: 1 for what in possible if what not in wanted})
    made.doubled = sorted((seen - allowed).elements(), key=repr)
    return made


class Sample(NamedTuple):
    """What a worker's process uses."""

    pid: int
    moment: float
    mib: float
    threads: int
    files: int


def growth(samples: Sequence[Sample]) -> list[str]:
    """What grew in a process, by its first third of samples and its last; nothing of one that lived shortly."""
    if len(samples) < ENOUGH:
        return []
    third = len(samples) // 3
    first, last = samples[:third], samples[-third:]
    before, after = (statistics.median(s.mib for s in part) for part in (first, last))
    grown = [f"{before:.0f} to {after:.0f} MiB"] if after > before * MORE + MORE_MIB else []
    for name, more in (("threads", MORE_THREADS), ("files", MORE_FILES)):
        before, after = (max(getattr(s, name) for s in part) for part in (first, last))
        if after > before + more:
            grown.append(f"{before} to {after} {name}")
    return [f"process {samples[0].pid}: {what}" for what in grown]


@dataclass
class Verdict:
    """The end of a soak."""

    seed: int
    done: Counter[str]
    account: Account
    drift: Sequence[object]
    identity: Sequence[object]
    unfinished: Sequence[object]
    grown: Sequence[str]
    measured: Sequence[str]
    twice: int
    recovery: tuple[float, str]

    def problems(self) -> list[str]:
        """What must not be, a line each."""
        kinds: dict[str, Sequence[object]] = {
            "lost": self.account.lost,
            "double counted": self.account.doubled,
            "ended otherwise than it should, or never ran": self.account.wrong,
            "drift": self.drift,
            "the parts of a job did not add up, or went back": self.identity,
            "never ended": self.unfinished,
            "growth": self.grown,
            f"nothing went on for {PROMISED:.0f} s": [self.recovery] if self.recovery[0] > PROMISED else [],
        }
        return [
            f"{name}: {len(found)}, such as {', '.join(map(str, found[:5]))}" for name, found in kinds.items() if found
        ]

    def table(self) -> list[str]:
        """All of it."""
        rows = [(kind, str(count)) for kind, count in sorted(self.done.items())]
        seconds, after = self.recovery
        rows += [
            ("faults", str(self.done.total())),
            ("items", f"{self.account.items:,}"),
            ("lost", str(len(self.account.lost))),
            ("double counted", str(len(self.account.doubled))),
            ("ended wrongly", str(len(self.account.wrong))),
            ("drift", str(len(self.drift))),
            ("runs twice", str(self.twice)),
            ("failed for three deaths", str(self.account.died)),
            ("slowest recovery", f"{seconds:.1f} s, after: {after}" if after else "-"),
        ]
        wide = max(len(name) for name, _ in rows)
        lines = [f"{name:<{wide}}  {value}" for name, value in rows]
        return [f"soak with seed {self.seed}", *lines, *self.measured, *self.problems()]
