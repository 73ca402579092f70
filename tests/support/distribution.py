"""How the tests are spread over the processes of pytest-xdist: long ones first, each to the process that is free."""

from functools import cache

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.paths import ROOT

#: The folders with long tests, in the order in which they start. The short tests at the end fill what is left of the
#: time of each process.
LONG_FIRST = (
    "tests/faults/test_rabbitmq_node.py", "tests/faults/test_restarts.py", "tests/faults/test_soak.py",
    "tests/integration/sql/test_stale_statistics.py", "tests/faults/", "tests/pipelines/",
    "tests/integration/commands/", "tests/browser/", "tests/integration/middleware/", "tests/integration/",
)  # fmt: skip


class Distribution(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each test to the process that is free, and the tests that share a fixture to one process."""

    def _split_scope(self, nodeid: str) -> str:
        return shared(nodeid.partition("::")[0]) or nodeid


@cache
def shared(module: str) -> str:
    """What the tests of a module share: a fixture of its own, or a RabbitMQ node that takes ten seconds of processor
    time to start; empty if nothing.
    """
    path = ROOT / module
    if "breakable_rabbitmq:" in path.read_text(encoding="utf-8"):
        return "breakable_rabbitmq"
    sources = [path, path.with_name("conftest.py")]
    text = "".join(source.read_text(encoding="utf-8") for source in sources if source.exists())
    return module if 'scope="module"' in text else ""


def long_first(items: list[pytest.Item]) -> None:
    """Put long tests first; otherwise the order stays."""

    def rank(item: pytest.Item) -> int:
        return next((n for n, folder in enumerate(LONG_FIRST) if item.nodeid.startswith(folder)), len(LONG_FIRST))

    items.sort(key=rank)
