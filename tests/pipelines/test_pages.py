"""Pages: sites that are really fetched, through PgBouncer in transaction mode; tenants are kept apart."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pika
import pytest

from callboard.web import create_app
from tests.pipelines.rig import TIMEOUT, Rig, make_rig
from tests.support.databases import with_database
from tests.support.services import SharedPostgres
from tests.support.vhosts import Broker
from tests.support.webapp import served


@pytest.fixture(scope="module")
def rig(
    shared_postgres: SharedPostgres, broker: Broker, pooler_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    def through(url: str) -> str:
        return with_database(pooler_url, urlsplit(url).path[1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALLBOARD_PREPARE", "off")
        # Nobody sees by its session that a worker lives, which may be silent for a while on a busy machine.
        folder = tmp_path_factory.mktemp("rig")
        with make_rig(shared_postgres, broker, folder, through=through, dead_after="30") as made:
            yield made


def test_a_batch_is_fetched_and_only_its_tenant_sees_it(rig: Rig) -> None:
    domains = [f"site-{n}.example" for n in range(40)]
    (job,) = rig.submit("pages", f"pages.submit('tenant-a', {domains}, metadata={{'batch': 7}})")
    status = job.wait(TIMEOUT)
    assert (status["state"], status["failed"]) == ("completed", 0)
    assert status["succeeded"] + status["skipped"] == 40
    assert status["skipped"] > 0
    for item in job.items("succeeded"):
        assert item["result"]["title"] == f"{item['args'][0]} – home"
        assert item["result"]["bytes"] > 0
    assert rig.world.calls["sites"] == 40

    with served(create_app(url=rig.environment["DATABASE_URL"])) as address:
        for tenant, code in (("tenant-a", 200), ("tenant-b", 404)):
            with httpx.Client(base_url=f"{address}/api/v1", headers=rig.token(tenant=tenant)) as api:
                found = api.get(f"/jobs/{job.id}")
                items = api.get(f"/jobs/{job.id}/items")
                listed = [one["id"] for one in api.get("/jobs").json()["jobs"]]
            assert (found.status_code, items.status_code) == (code, code)
            assert listed == ([job.id] if code == 200 else [])
            if code == 200:
                assert found.json()["metadata"] == {"batch": 7}
                assert {item["state"] for item in items.json()["items"]} == {"succeeded", "skipped"}


def test_a_batch_whose_messages_were_lost_repairs_itself(rig: Rig) -> None:
    """They are purged while no worker runs."""
    rig.worker.kill()
    (job,) = rig.submit("pages", "pages.submit('tenant-a', [f'lost-{n}.example' for n in range(60)], rate=None)")
    with pika.BlockingConnection(pika.URLParameters(rig.environment["AMQP_URL"])) as connection:
        purged = connection.channel().queue_purge("callboard").method.message_count
    assert purged > 0
    rig.worker.start()
    status = job.wait(TIMEOUT)
    assert (status["state"], status["succeeded"] + status["skipped"]) == ("completed", 60)
    rig.assert_nothing_left()
