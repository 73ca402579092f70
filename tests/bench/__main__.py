"""`python -m tests.bench [drain] [saves] [publish] … [--pairs N] [--items N]`: tables on stdout."""

import argparse

from tests.bench import control, drain, fairness, publish, saves, watchers
from tests.bench.rig import rig

WHAT = ["drain", "saves", "publish", "submit", "control", "fairness", "watchers"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*WHAT, []], default=[])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--items", type=int, default=40_000)
    given = parser.parse_args()
    what = given.what or WHAT
    with rig() as here:
        if "drain" in what:
            print("\n".join(["", *drain.table(here, given.items, given.pairs)]), flush=True)
        if "saves" in what:
            print("\n".join(["", *saves.table(here, given.items, given.pairs)]), flush=True)
        if "publish" in what:
            print("\n".join(["", *publish.table(here, given.items, given.pairs)]), flush=True)
        if "submit" in what:
            print("", publish.submitting(here, 1_000_000), sep="\n", flush=True)
        if "control" in what:
            print("\n".join(["", *control.table(here, 1_000_000)]), flush=True)
        if "fairness" in what:
            print("\n".join(["", *fairness.table(here, given.pairs)]), flush=True)
        if "watchers" in what:
            print("", *watchers.table(here), sep="\n", flush=True)


if __name__ == "__main__":
    main()
