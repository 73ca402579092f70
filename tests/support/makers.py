"""Functions that make a stage's items from the results of the one before; clients name them, workers import them."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from callboard import Result, Results

PROVIDERS = ("one", "two", "three")


def questions(results: Iterable[Result]) -> Iterator[dict[str, Any]]:
    """Fan-out: each query to each provider."""
    for one in results:
        for query in one.result:
            for provider in PROVIDERS:
                yield {"query": query, "provider": provider}


def fragile(results: Results) -> Iterator[dict[str, Any]]:
    """The same, of which a provider is away as long as a file is there."""
    for one in results:
        yield from ({**item, "fails": one.args[0]} for item in questions([one]))


def gated(results: Results) -> Iterator[dict[str, Any]]:
    """The same, and each answer waits for a file."""
    for one in results:
        yield from ({**item, "gate": one.args[0]} for item in questions([one]))


def together(results: Results) -> list[list[list[int]]]:
    """Fan-in: one item of all results."""
    return [[[one.result for one in results]]]


def of_all(results: Results) -> Iterator[Any]:
    """The numbers of the items that failed."""
    yield from (one.item for one in results.of("failed"))


def broken(results: Results) -> Iterator[int]:
    """Raises after some items."""
    for one in results:
        yield one.item
        if one.item == 3:
            raise RuntimeError("no idea how to go on")


def unfit(results: Results) -> list[object]:
    """What is no item."""
    return [1, object()]


def misnamed(results: Results) -> list[dict[str, Any]]:
    """Items of which the second has an argument that its actor does not take."""
    return [{"value": 1}, {"valve": 2}]


def nothing(results: Results) -> None:
    """Gives nothing at all."""


def slowly(results: Results) -> Iterator[int]:
    """Takes its time, item by item."""
    for one in results:
        time.sleep(0.25)
        yield one.item


def counted(results: Results) -> list[list[list[int]]]:
    """Fan-in: one item, with a one for each result."""
    return [[[1 for _ in results]]]


_stumbled = False


def stumbles(results: Results) -> Iterator[int]:
    """Raises once, in this process, after a part is stored; then gives them all."""
    global _stumbled  # noqa: PLW0603
    del results
    for n in range(520):
        if n == 510 and not _stumbled:
            _stumbled = True
            raise RuntimeError("once")
        yield n


def onwards(results: Results) -> Iterator[dict[str, int]]:
    """An item of each result."""
    for one in results:
        yield {"number": one.result["number"] + 1_000}


def two(results: Results) -> list[int]:
    """Two items, whatever there is."""
    return [one.item for one in results][:2]
