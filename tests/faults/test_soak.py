"""A short soak: all kinds of faults once, one after another, while jobs of all kinds go on."""

from collections.abc import Iterator

import pytest

from callboard.commands.services import Server
from tests.faults.rig import periods
from tests.faults.rig.proxy import Proxy
from tests.faults.rig.scenario import Scenario
from tests.faults.soak.load import MODULE
from tests.faults.soak.plan import KINDS, plan
from tests.faults.soak.run import Soak, proxies
from tests.support.nodes import Node

SEED = 20261124
#: Faults follow each other as fast as they can be done; workers are missed after some seconds.
LENGTH, GAP, STILL, LIMIT = 17.0, (0.7, 1.4), (1.0, 6.0), "4"


@pytest.fixture
def direct_amqp_url(vhost: str) -> str:
    return vhost


@pytest.fixture
def by(worker_database_url: str, environment: dict[str, str]) -> Iterator[tuple[Proxy, Proxy]]:
    """Proxies before both services; what is started in this test goes by them."""
    with proxies(environment) as (changed, database, broker):
        environment.update(changed)
        yield database, broker


def test_every_kind_of_fault_in_half_a_minute(
    direct_amqp_url: str,
    by: tuple[Proxy, Proxy],
    scenario: Scenario,
    breakable_postgres: Server,
    breakable_rabbitmq: Node,
) -> None:
    faults = plan(SEED, LENGTH, gap=GAP, still=STILL)
    assert {fault.kind for fault in faults} == set(KINDS)
    soak = Soak(
        scenario,
        breakable_postgres,
        breakable_rabbitmq,
        direct_amqp_url,
        *by,
        SEED,
        faults,
        LENGTH,
        print,
        {periods.SHORT_PERIODS: LIMIT, periods.DEAD_AFTER: LIMIT},
        (MODULE, periods.MODULE),
    )
    print("\n".join(fault.line() for fault in faults))
    verdict = soak.run()
    print("\n".join(verdict.table()))
    assert verdict.problems() == []
    assert {kind for kind in KINDS if not verdict.done[kind]} == set(), "they hit nobody"
    assert verdict.account.items > 1_000
