"""The rig that the tests of a pipeline share."""

from collections.abc import Iterator

import pytest

from tests.pipelines.rig import Rig, make_rig
from tests.support.services import SharedPostgres
from tests.support.vhosts import Broker


@pytest.fixture(scope="module")
def rig(shared_postgres: SharedPostgres, broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with make_rig(shared_postgres, broker, tmp_path_factory.mktemp("rig")) as made:
        yield made
