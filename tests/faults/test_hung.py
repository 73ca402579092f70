"""An item that hangs makes no progress and no error. The job shows it, with the line where it stands."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import callboard
from tests.faults.rig.scenario import Scenario
from tests.support.programs import run, running
from tests.support.webapp import open_app, served

SOON = {"CALLBOARD_HUNG_AFTER": "1"}


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def line_of(code: str, module: str) -> int:
    """The number of the first line with this code, in a module of actors that only workers import."""
    lines = (Path(__file__).parent / "rig" / module).read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if code in line)


def hung(scenario: Scenario, job: callboard.Job, *places: str) -> dict[str, Any]:
    """What is said of the one item that hangs, once it stands at one of these places: it may get there late."""
    scenario.wait_for(job, lambda status: [one["place"] in places for one in status["hung"]] == [True])
    found: dict[str, Any] = scenario.status(job)["hung"][0]
    return found


def test_an_actor_blocked_in_recv_is_named_with_its_line(
    scenario: Scenario, silent: socket.socket, tmp_path: Path
) -> None:
    scenario.start_worker(env=SOON)
    place = f"rig/actors.py:{line_of('recv(1)', 'actors.py')} in hung"
    job = scenario.submit("hung", [{"port": silent.getsockname()[1]}])
    seen = hung(scenario, job, place)
    (worker,) = scenario.sql("SELECT worker FROM callboard.running WHERE job_id = %s", job.id)
    assert (seen["item"], seen["place"], seen["worker"]) == (0, place, worker[0])
    assert 1 <= seen["seconds"] < 300
    with served(open_app(scenario.database_url)) as address:
        told = httpx.get(f"{address}/api/jobs/{job.id}").json()["hung"]
        (item,) = httpx.get(f"{address}/api/jobs/{job.id}/items?state=running").json()["items"]
    assert [one["place"] for one in told] == [place]
    assert item["stack"] == f"{place}\n    connection.recv(1)"
    line = rf"hung: item 0 on worker {worker[0]}, for [\d a-z]+ s, at {re.escape(place)}"
    there = {"DATABASE_URL": scenario.database_url}
    assert re.search(line, run(tmp_path, "status", str(job.id), env=there).stdout)
    with running(tmp_path, "watch", str(job.id), env=there, until=place) as shown:
        assert re.search(line, shown.log.read_text(encoding="utf-8"))
    silent.close()  # which resets the connection
    scenario.assert_completed(job, total=1, failed=1)
    assert scenario.status(job)["hung"] == []


def test_a_coroutine_that_waits_for_ever_is_named_with_its_line(scenario: Scenario) -> None:
    scenario.start_worker(env=SOON, modules=("tests.faults.rig.actors", "tests.faults.rig.async_actors"))
    waits, gathers = (line_of(code, "async_actors.py") for code in ("Event().wait()", "asyncio.gather("))
    blocks, nested = (line_of(code, "async_actors.py") for code in ("time.sleep(", "    await never()"))
    job = scenario.submit("patient", [{"how": "nested"}, {"how": "gathers"}])
    told = "SELECT item, stack FROM callboard.running WHERE job_id = %s AND stack ~ %s"
    there = f":({nested}|{gathers}) in patient"  # they may get there late
    scenario.wait_for(job, lambda status: len(status["hung"]) == len(scenario.sql(told, job.id, there)) == 2)
    # What stands in the standard library is the library's line; the item's stack goes on to the actor's.
    stacks = dict(scenario.sql(told, job.id, there))
    assert f"rig/async_actors.py:{waits} in never\n" in stacks[0]
    assert stacks[0].endswith(f"rig/async_actors.py:{nested} in patient\n    await never()")
    assert stacks[1].startswith(f"rig/async_actors.py:{gathers} in patient\n")
    assert not re.search("dramatiq|callboard/|middleware/", "".join(stacks.values()))
    # One that keeps the loop to itself stands where the loop's thread stands.
    gate = scenario.folder / "gate"
    job = scenario.submit("patient", [{"how": "blocks", "gate": str(gate)}])
    hung(scenario, job, *(f"rig/async_actors.py:{blocks - n} in patient" for n in (0, 1)))
    gate.touch()
    scenario.assert_completed(job, total=1)


def test_what_is_not_hung_has_no_stack(scenario: Scenario) -> None:
    """An actor that usually takes longer than the limit hangs only after ten times that."""
    scenario.start_worker(env={"CALLBOARD_HUNG_AFTER": "0.1"})
    first = scenario.submit("work", ({"number": n, "seconds": 2.0} for n in range(8)))
    scenario.assert_completed(first, total=8)
    scenario.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'looked at'; END$$;"
        "CREATE TRIGGER refuse BEFORE UPDATE ON callboard.running FOR EACH ROW WHEN (NEW.stack IS NOT NULL)"
        " EXECUTE FUNCTION refuse()"
    )
    job = scenario.submit("work", ({"number": n, "seconds": 2.0} for n in range(16)))
    scenario.assert_completed(job, total=16)
    assert "looked at" not in scenario.log()
