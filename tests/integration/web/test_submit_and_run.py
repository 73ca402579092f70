"""Jobs that are submitted over HTTP run: a real worker publishes what the web app has stored."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from callboard.sql.pool import connect
from callboard.sql.reads import queries
from callboard.sql.states import JOB_FINAL
from callboard.web import create_app
from tests.support.webapp import served
from tests.support.workers import StartWorker, wait_until

LINES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def ask(environment: dict[str, str], worker: StartWorker) -> Iterator[Callable[..., Any]]:
    """Sends a request to the app, beside a worker that runs; gives the JSON of the answer."""
    url = environment["DATABASE_URL"]
    worker("tests.support.pipeline_actors", "tests.support.stage_actors")
    app = create_app(url=url, open_to_everyone=True)
    with served(app) as address, httpx.Client(base_url=f"{address}/api/v1", timeout=300) as client:

        def request(method: str, path: str, **options: Any) -> Any:
            return client.request(method, path, **options).raise_for_status().json()

        yield request
    with connect(url) as conn:
        assert queries.run(conn, queries.verify())["drift"] == []


def ended(ask: Callable[..., Any], job: int) -> Any:
    assert wait_until(lambda: ask("GET", f"/jobs/{job}")["state"] in JOB_FINAL, 300)
    return ask("GET", f"/jobs/{job}")


def test_what_is_submitted_over_http_runs(ask: Callable[..., Any]) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"actor": "work", "name": "streamed", "chunk": 10}\n'
        for number in range(600):
            fate = "fail" if number % 100 == 0 else "succeed"
            yield json.dumps({"number": number, "fate": fate}).encode() + b"\n"

    job = ended(ask, ask("POST", "/jobs", content=body(), headers=LINES)["id"])
    assert (job["state"], job["succeeded"], job["failed"], job["total"]) == ("completed", 594, 6, 600)

    again = ended(ask, ask("POST", f"/jobs/{job['id']}/run-again", json={"states": ["failed"]})["id"])
    assert (again["name"], again["failed"], again["total"]) == ("streamed", 6, 6)

    opened = ask("POST", "/jobs", json={"actor": "work", "open": True})["id"]
    done = 0

    def all_done() -> bool:
        return bool(ask("GET", f"/jobs/{opened}")["succeeded"] == done)

    for done in (1, 2, 3):
        ask("POST", f"/jobs/{opened}/items", json={"items": [{"number": done}]})
        assert wait_until(all_done, 300)
    ask("POST", f"/jobs/{opened}/seal")
    assert ended(ask, opened)["succeeded"] == 3

    stages = [{"actor": "number", "items": [1, 2, 3]}, {"actor": "number", "make": "tests.support.makers:two"}]
    staged = ended(ask, ask("POST", "/jobs", json={"name": "staged", "stages": stages})["id"])
    assert [one["state"] for one in staged["stages"]] == ["completed"] * 2
    assert [one["succeeded"] for one in staged["stages"]] == [3, 2]
