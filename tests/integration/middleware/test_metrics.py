"""What worker processes tell Prometheus, alone and beside Dramatiq's own middleware."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import callboard
from callboard.commands.services.ports import free_ports
from tests.support.clients import client
from tests.support.workers import StartWorker, wait_until

ACTORS = "tests.support.pipeline_actors"
ITEMS = 100


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Our port, and that of Dramatiq's own; folders of this test's own."""
    ours, dramatiqs = free_ports(2)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("dramatiq_prom_db", str(tmp_path / "dramatiq"))
    monkeypatch.setenv("dramatiq_prom_host", "127.0.0.1")
    monkeypatch.setenv("dramatiq_prom_port", str(dramatiqs))
    monkeypatch.setenv("CALLBOARD_METRICS_PORT", str(ours))
    return [ours, dramatiqs]


def read(port: int) -> dict[tuple[str, ...], float]:
    """The samples by name and values of labels."""
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics")
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/?name[]=up").is_success
    except httpx.TransportError:
        return False


def run(number: int) -> None:
    job = callboard.submit("work", ({"number": n, "fate": "fail" if n < 5 else "succeed"} for n in range(number)))
    assert job.wait(300)["state"] == "completed"


def test_all_processes_are_counted_and_none_twice(
    environment: dict[str, str], worker: StartWorker, ports: list[int]
) -> None:
    crew = worker(ACTORS, processes=2)
    labels = ("work", "default")

    def succeeded() -> float:
        return read(ports[0]).get(("callboard_attempts_total", *labels, "succeeded"), 0)

    assert wait_until(lambda: answers(ports[0]), 300)
    with client(environment, ["work"]):
        run(ITEMS)
        expected = {
            ("callboard_attempts_total", *labels, "succeeded"): ITEMS - 5,
            ("callboard_attempts_total", *labels, "failed"): 5,
            ("callboard_attempts_total", *labels, "retrying"): 10,
            ("callboard_attempt_seconds_count", *labels): ITEMS + 10,
            ("callboard_queue_wait_seconds_count", *labels): ITEMS,
            ("callboard_flush_outcomes_sum",): ITEMS + 10,
        }
        # Two processes count, each after its commits.
        assert wait_until(lambda: expected.items() <= read(ports[0]).items(), 300), read(ports[0])
        found = read(ports[0])
        assert found["callboard_queue_wait_seconds_sum", *labels] < 300 * ITEMS
        assert 0 < found["callboard_flush_outcomes_count",] <= found["callboard_flush_outcomes_sum",]
        assert found["callboard_flush_seconds_count",] == found["callboard_flush_outcomes_count",]
        assert found["callboard_published_total",] > 0
        assert {name for name, *_ in found} & {"callboard_journal_backlog", "callboard_counter_repairs_total"}
        assert all(name.startswith("callboard_") for name, *_ in found)
        assert not any("job" in one for one in httpx.get(f"http://127.0.0.1:{ports[0]}").text.split("{")[1:])
        crew.kill()
        crew.start()
        assert wait_until(lambda: answers(ports[0]), 300)
        run(ITEMS)
        assert wait_until(lambda: succeeded() == 2 * (ITEMS - 5), 300), "what a process counted outlives it"


def test_beside_dramatiqs_own_middleware_its_server_tells_both(
    environment: dict[str, str], worker: StartWorker, ports: list[int]
) -> None:
    worker("tests.support.prometheus_actors")
    assert wait_until(lambda: answers(ports[1]), 300)
    with client(environment, ["work"]):
        run(20)

        def both() -> bool:
            found = read(ports[1])
            ours = found.get(("callboard_attempts_total", "work", "default", "succeeded"))
            return (ours, found.get(("dramatiq_messages_total", "work", "default"))) == (15, 30)

        assert wait_until(both, 300), read(ports[1])
    with pytest.raises(httpx.ConnectError):
        read(ports[0])


def test_without_a_port_nothing_is_counted(
    environment: dict[str, str], worker: StartWorker, ports: list[int], tmp_path: Path
) -> None:
    worker(ACTORS, env={"CALLBOARD_METRICS_PORT": ""})
    with pytest.raises(httpx.ConnectError):
        read(ports[0])
    assert not [*tmp_path.glob("callboard-metrics-*")]
