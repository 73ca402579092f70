"""`python -m tests.bench [drain] [saves] [publish] … [--pairs N] [--items N]`: tables on stdout."""

import argparse
from collections.abc import Callable, Iterable

from tests.bench import (
    actions,
    burden,
    costs,
    cpu,
    drain,
    fairness,
    idle,
    latency,
    peers,
    publish,
    saves,
    scale,
    sends,
    tails,
    watchers,
    web,
    work,
)
from tests.bench.rig import Rig, rig

#: The tables by name, each of a rig, a number of items and a number of pairs; some have their own numbers.
TABLES: dict[str, Callable[[Rig, int, int], Iterable[str]]] = {
    "drain": drain.table,
    "work": lambda rig, _items, pairs: work.table(rig, pairs),
    "cpu": cpu.table,
    "tails": lambda rig, _items, pairs: tails.table(rig, pairs),
    "saves": saves.table,
    "sends": sends.table,
    "latency": lambda rig, _items, _pairs: latency.table(rig),
    "idle": lambda rig, _items, _pairs: idle.table(rig),
    "publish": publish.table,
    "submit": lambda rig, _items, _pairs: [publish.submitting(rig, 1_000_000)],
    "actions": lambda rig, _items, _pairs: actions.table(rig, 1_000_000),
    "costs": lambda rig, _items, _pairs: costs.table(rig),
    "fairness": lambda rig, _items, pairs: fairness.table(rig, pairs),
    "watchers": lambda rig, _items, _pairs: watchers.table(rig),
    "peers": peers.table,
    "scale": scale.table,
    "year": scale.year,
    "burden": burden.table,
    "web": lambda rig, _items, pairs: web.table(rig, pairs),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*TABLES, []], default=[])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--items", type=int, default=40_000)
    given = parser.parse_args()
    with rig() as here:
        for name in given.what or TABLES:
            print()
            for line in TABLES[name](here, given.items, given.pairs):
                print(line, flush=True)


if __name__ == "__main__":
    main()
