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
    """Gives each test to the process that is free, and the tests of a module that share its fixtures to one process."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if keeps_together(module) else nodeid


@cache
def keeps_together(module: str) -> bool:
    """Whether the tests of a module share a fixture of its own, or a RabbitMQ node of the process's own."""
    path = ROOT / module
    sources = [path, path.with_name("conftest.py")]
    text = "".join(source.read_text(encoding="utf-8") for source in sources if source.exists())
    return 'scope="module"' in text or "breakable_rabbitmq:" in path.read_text(encoding="utf-8")


def long_first(items: list[pytest.Item]) -> None:
    """Put long tests first; otherwise the order stays."""

    def rank(item: pytest.Item) -> int:
        return next(
            (n for n, folder in enumerate(LONG_FIRST) if item.nodeid.startswith(folder)), len(LONG_FIRST)
        )

    items.sort(key=rank)
