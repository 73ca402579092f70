"""PostgreSQL fails over to a streaming replica and back, with a job at work and a web app that shows it."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

import callboard
from callboard.commands.services import Server, wait_until
from callboard.sql.migrate import migrate
from tests.faults.rig.scenario import TIMEOUT, Scenario, gated, mixed, seconds_since
from tests.faults.test_rabbitmq import sent_again
from tests.support.replica import ask, configure, follow, is_followed, promote
from tests.support.services import POSTGRES_SETTINGS, postgres_programs, postgres_users
from tests.support.webapp import open_app, served

ITEMS, FIRST = 280, 70
#: Items that wait for the way back: fewer than a worker has threads, so that all others end before it.
LAST = 4
READ_ONLY = "default_transaction_read_only"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica, which has each commit before the client hears of it."""
    first, second = (
        Server(tmp_path / name, settings=POSTGRES_SETTINGS, users=postgres_users(), programs=postgres_programs())
        for name in ("first", "second")
    )
    try:
        first.start()
        follow(first, second)
        configure(first, synchronous_standby_names="*")
        yield first, second
    finally:
        first.kill()
        second.kill()
        first.close()
        second.close()


@pytest.fixture
def fault_database_url(servers: tuple[Server, Server]) -> str:
    """The address of whichever of the two takes writes."""
    hosts = ",".join(quote(str(server.sockets), safe="") for server in servers)
    url = f"postgresql://postgres@/postgres?host={hosts}&target_session_attrs=read-write"
    migrate(url)
    return url


def fails_over(scenario: Scenario, job: callboard.Job, primary: Server, replica: Server, gate: Path) -> int:
    """The primary is killed, and its replica takes its place: more items end, of those behind the gate. How many
    outcomes it lacks: nobody writes to it before they are counted.
    """
    seen = int(scenario.status(job)["succeeded"])
    configure(replica, **{READ_ONLY: "on"})
    assert wait_until(lambda: ask(replica, f"SHOW {READ_ONLY}") == "on", TIMEOUT)
    primary.kill()
    promote(replica)
    before = succeeded(replica, job)
    gate.touch()
    configure(replica, **{READ_ONLY: "off"})
    began = time.monotonic()
    scenario.wait_for(job, lambda status: status["succeeded"] > before)
    print(f"{seen} seen, {before} there, went on {seconds_since(began):.1f} s after the promotion")
    return seen - before


def succeeded(server: Server, job: callboard.Job) -> int:
    """The items of a job whose success a server has, also one that takes no writes; 0 if it has no such job."""
    return int(str(ask(server, f"SELECT coalesce(sum(succeeded), 0) FROM callboard.jobs WHERE id = {job.id}")))


def test_there_and_back(scenario: Scenario, servers: tuple[Server, Server], tmp_path: Path) -> None:
    """To a synchronous replica, which has all that was seen; and back to an asynchronous one that is behind: the items
    whose outcomes it lacks run again, and count once.
    """
    first, second = servers
    gate, last = tmp_path / "gate", tmp_path / "last"
    for _ in range(2):
        scenario.start_worker(short_periods=5)
    with served(open_app(scenario.environment["DATABASE_URL"])) as web:
        killed = tmp_path / "killed"
        job = scenario.submit("work", gated(mixed(ITEMS, 0.04), killed, FIRST))
        with scenario.watch(job) as watcher:
            scenario.wait_at_work(job, ITEMS // 10, FIRST, threads=2 * 8)
            assert fails_over(scenario, job, first, second, killed) <= 0
            scenario.assert_mixed_completed(job, ITEMS, watcher=watcher)
        assert sent_again(scenario) == 0
        print(f"{scenario.run_log.repeated(job.id)} runs twice")

        follow(second, first)
        items = gated(mixed(ITEMS, 0.04), gate, FIRST)
        job = scenario.submit("work", gated(items, last, ITEMS - LAST))
        scenario.wait_at_work(job, ITEMS // 10, FIRST, threads=2 * 8)
        assert wait_until(lambda: succeeded(first, job) > 0, TIMEOUT)
        configure(first, primary_conninfo="")
        assert wait_until(lambda: not is_followed(second), TIMEOUT)
        gate.touch()  # so the replica lacks what ends from now on
        scenario.wait_for(job, lambda status: status["succeeded"] > ITEMS / 2)
        lost = fails_over(scenario, job, second, first, last)
        assert lost > 0
        runs = scenario.assert_mixed_completed(job, ITEMS)
        print(f"{lost} outcomes lost, {sent_again(scenario)} sent again, {runs.total()} runs")
        assert httpx.get(f"{web}/api/v1/jobs/{job.id}").json()["state"] == "completed"
