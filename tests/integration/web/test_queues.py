"""The queues as the API shows them, and dead letters that are put back, with a real worker and RabbitMQ."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from callboard import Identity
from callboard.commands.main import main
from callboard.middleware.rabbitmq import queue_admin
from callboard.web import create_app
from callboard.web.health import CLOSED
from tests.support.pipeline import TIMEOUT, Pipeline, running_pipeline
from tests.support.vhosts import Broker
from tests.support.webapp import get, open_app, served
from tests.support.workers import wait_until

LETTERS = "/api/v1/queues/default/dead-letters"


@pytest.fixture(scope="module")
def pipeline(
    postgres_url: str, template: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """One worker process for all of these tests."""
    folder = tmp_path_factory.mktemp("queues")
    with running_pipeline(postgres_url, template, broker, ["work", "stubborn"], folder) as made:
        yield made
        assert made.worker is not None
        assert made.worker.stop() == 0
        assert made.drift() == []


@pytest.fixture
def http(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client of the app on that database and RabbitMQ."""
    for name in ("DATABASE_URL", "AMQP_URL"):
        monkeypatch.setenv(name, pipeline.environment[name])
    monkeypatch.setattr(queue_admin, "ANSWER_SECONDS", TIMEOUT)
    with (
        served(open_app(pipeline.environment["DATABASE_URL"])) as address,
        httpx.Client(base_url=address, timeout=300) as client,
    ):
        yield client


def queue(http: httpx.Client) -> dict[str, Any]:
    """The default queue."""
    answer = http.get("/api/v1/queues").json()
    assert answer["trouble"] is None
    (found,) = (row for row in answer["queues"] if row["name"] == "default")
    return dict(found)


def test_dead_letters_are_shown_with_their_error_and_put_back(
    pipeline: Pipeline, http: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    job = pipeline.submit("stubborn", *[{"number": n, "wins_at": 4} for n in range(3)])
    assert job.wait(TIMEOUT)["failed"] == 3
    assert wait_until(lambda: queue(http)["dead"] == 3, TIMEOUT)
    seen = queue(http)
    assert {"stubborn", "work"} <= set(seen["actors"])
    assert (seen["ready"], seen["delayed"], seen["pending"], seen["unserved"]) == (0, 0, 0, [])
    assert seen["consumers"] >= 1
    for _ in range(12):  # to look is to change nothing
        letters = http.get(LETTERS).json()["dead_letters"]
        assert sorted((one["job"], one["item"], one["actor"]) for one in letters) == [
            (job.id, item, "stubborn") for item in range(3)
        ]
    assert {one["reason"] for one in letters} == {"rejected"}
    assert {one["error"].partition(":")[0] for one in letters} == {"tests.support.pipeline_actors.TransientError"}

    moved = http.post("/api/v1/queues/default/put-back", json={"limit": 2})
    assert moved.json() == {"put_back": 2, "left": 1}
    assert wait_until(lambda: job.status()["succeeded"] == 2, TIMEOUT)
    assert main(["put-back", "default", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"put_back": 1, "left": 0}
    assert wait_until(lambda: job.status()["succeeded"] == 3, TIMEOUT)
    (row,) = (row for row in http.get("/api/v1/queues").json()["queues"] if row["name"] == "default")
    assert row["dead"] == 0


def test_a_queue_of_nobody_is_not_touched(http: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    for answer in (http.get("/api/v1/queues/somebody/dead-letters"), http.post("/api/v1/queues/somebody/put-back")):
        assert (answer.status_code, "'somebody'" in answer.json()["detail"]) == (404, True)
    assert http.post("/api/v1/queues/default/put-back", json={"limit": 0}).status_code == 422
    assert main(["put-back", "somebody"]) == 1
    assert "known are default" in capsys.readouterr().err


def test_without_rabbitmq_the_rows_are_shown_and_why(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://anna:hunter2@127.0.0.1:1")
    answer = http.get("/api/v1/queues")
    assert "127.0.0.1:1" in answer.json()["trouble"]
    assert "hunter2" not in answer.text
    assert {row["ready"] for row in answer.json()["queues"]} == {None}
    refused = http.get(LETTERS)
    assert (refused.status_code, "127.0.0.1:1" in refused.json()["detail"]) == (503, True)
    monkeypatch.delenv("AMQP_URL")
    assert "AMQP_URL is not set" in http.get("/api/v1/queues").json()["trouble"]


def test_the_app_finds_rabbitmq_as_it_finds_the_database(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Started by hand, in a folder in which `callboard up` runs."""
    for name in ("DATABASE_URL", "AMQP_URL"):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".callboard").mkdir()
    (tmp_path / ".callboard" / "up.json").write_text('{"amqp_url": "amqp://127.0.0.1:1"}')
    assert "127.0.0.1:1" in http.get("/api/v1/queues").json()["trouble"]
    assert "127.0.0.1:1" in http.get(LETTERS).json()["detail"]
    assert http.get("/readyz").json()["checks"]["broker"] == CLOSED


class Management(BaseHTTPRequestHandler):
    """What RabbitMQ's management API answers."""

    def do_GET(self) -> None:
        rows = [
            {"name": "default", "messages_ready": 5, "messages_unacknowledged": 7, "consumers": 3},
            {"name": "default.XQ", "messages_ready": 2, "messages_unacknowledged": 0, "consumers": 0},
        ]
        asked = self.path.startswith("/api/queues/") and self.headers["Authorization"].startswith("Basic ")
        self.send_response(200 if asked else 404)
        self.end_headers()
        self.wfile.write(json.dumps(rows).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_the_management_api_tells_what_is_unacknowledged(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Management) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("CALLBOARD_RABBITMQ_API", f"http://127.0.0.1:{server.server_port}")
        seen = queue(http)
        server.shutdown()
    assert (seen["ready"], seen["unacknowledged"], seen["dead"], seen["consumers"]) == (5, 7, 2, 3)


def test_who_sees_one_tenant_sees_no_queue(pipeline: Pipeline) -> None:
    app = create_app(url=pipeline.environment["DATABASE_URL"], authenticate=lambda _: Identity("anna", tenant="acme"))
    assert [answer.status_code for answer in get(app, "/api/v1/queues", LETTERS)] == [403, 403]
