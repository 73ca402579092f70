"""Two releases of Callboard, with their schemas, and of the user's actors run at once, forwards and back."""

import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

import callboard
from tests.faults.rig.scenario import ACTORS, POLL, Scenario, fate, gated, mixed
from tests.support.paths import ROOT
from tests.support.webapp import open_app, served
from tests.support.workers import Worker, wait_until

PARTS = ("callboard", "sql", "middleware", "web", "actors")
NAME = "9001_of_the_next_release"
MIGRATION = """
ALTER TABLE callboard.jobs ADD COLUMN hue text;
ALTER TABLE callboard.items ADD COLUMN hue text;
ALTER TYPE callboard.item_state ADD VALUE 'parked';
ALTER TYPE callboard.attempt_kind ADD VALUE 'parked';
ALTER TABLE callboard.workers ADD COLUMN hue text NOT NULL DEFAULT 'red';
CREATE TABLE callboard.hues (name text PRIMARY KEY);
"""
#: One that older code can't run on, and what the code of the next release has instead.
BREAKING = "-- breaking\nALTER TABLE callboard.items RENAME COLUMN worker TO ran_by"
BROKEN = {
    "record.sql": ("        worker = e.worker,", "        ran_by = e.worker,"),
    "reads.sql": ("coalesce(r.worker, i.worker)", "coalesce(r.worker, i.ran_by)"),
}
AHEAD = f"the database's schema is ahead of this code by {NAME}, which only add to it; going on"
#: Items sent between two steps.
SOME = 160
ITEMS = 200


@pytest.fixture
def next_release(tmp_path: Path) -> Path:
    """A copy of Callboard with one more migration."""
    folder = tmp_path / "next"
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "sql" / "migrations" / f"{NAME}.sql").write_text(MIGRATION)
    return folder


def migrate(scenario: Scenario, folder: Path) -> str:
    """`callboard migrate` of the release in a folder."""
    command = [sys.executable, "-m", "callboard.commands.main", "migrate"]
    done = subprocess.run(
        command, cwd=folder, env={"DATABASE_URL": scenario.database_url}, check=False, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def of_releases(scenario: Scenario, *releases: str) -> bool:
    """Whether the living workers are of these, by the API; one may be silent for a moment."""
    with served(open_app(scenario.database_url)) as address:

        def told() -> bool:
            workers = httpx.get(f"{address}/api/workers?state=alive").json()["workers"]
            return sorted(worker["release"] for worker in workers) == sorted(releases)

        return wait_until(told, 300, pause=POLL)


def roll(scenario: Scenario, old: Worker, release: str, **more: Any) -> Worker:
    """Do what a deploy does: ask one worker to stop, and start another in its place."""
    assert old.stop() == 0
    scenario.workers.remove(old)
    return scenario.start_worker(env={"CALLBOARD_RELEASE": release}, **more)


def test_workers_go_to_the_next_release_and_back_in_mid_job(scenario: Scenario, next_release: Path) -> None:
    """Its migration comes first, under workers that don't know it."""
    path = ("--path", str(next_release))
    first, second = (scenario.start_worker(env={"CALLBOARD_RELEASE": "7"}) for _ in range(2))
    work, sent = scenario.broker.get_actor("work"), 0
    with callboard.job("rolling") as job, scenario.watch(job) as watcher:

        def go_on() -> None:
            """Send some more, until both workers have begun with it, and leave the most to be done meanwhile."""
            nonlocal sent
            gate = scenario.folder / f"gate-{sent}"
            for item in gated(islice(mixed(sent + SOME, 0.1), sent, None), gate, 0):
                work.send(**item)
            assert wait_until(lambda: at_work(scenario, job) == 2, 300, pause=POLL)
            gate.touch()
            scenario.wait_for(job, lambda status: status["succeeded"] > sent * 0.8)
            sent += SOME

        go_on()
        assert NAME in migrate(scenario, next_release)
        go_on()
        ahead = roll(scenario, first, "8", arguments=path)
        assert of_releases(scenario, "7", "8")
        go_on()
        also = roll(scenario, second, "8", arguments=path)
        assert of_releases(scenario, "8", "8")
        go_on()
        # It is the copy's code that runs: this code is behind, and says so.
        assert "ahead of this code" not in ahead.output + also.output
        back = roll(scenario, ahead, "7")
        assert AHEAD in back.output
        assert of_releases(scenario, "7", "8")
        go_on()
        assert AHEAD in roll(scenario, also, "7").output
        go_on()
    scenario.assert_mixed_completed(job, sent, watcher=watcher)
    assert scenario.run_log.repeated(job.id) == 0
    assert scenario.sql("SELECT DISTINCT hue FROM callboard.workers") == [("red",)]
    ran = scenario.run_log.conn.execute("SELECT count(DISTINCT pid) FROM runs WHERE job = %s", (job.id,)).fetchone()
    assert ran == (6,)


def at_work(scenario: Scenario, job: callboard.Job) -> int:
    """How many processes have items of a job in flight."""
    unfinished = "SELECT count(DISTINCT pid) FROM runs WHERE job = %s AND ended IS NULL"
    row = scenario.run_log.conn.execute(unfinished, (job.id,)).fetchone()
    return int(row[0]) if row else 0


def lacks_actor(status: dict[str, Any]) -> bool:
    """Whether that is why a job stands still."""
    return bool(status["stalled"] == "no worker that is alive has the actor renamed")


def test_an_actor_that_only_the_next_release_has_waits_for_it(scenario: Scenario) -> None:
    """Both releases take messages off the same queue; then the next one goes, and comes again."""
    modules = (ACTORS, "tests.faults.rig.renamed_actor")
    scenario.start_worker(threads=4)
    ahead = scenario.start_worker(threads=4, modules=modules)
    gate = scenario.folder / "gate"
    items = ({"number": n, "seconds": 1.0 if n > ITEMS // 10 else 0.0} for n in range(ITEMS))
    job = scenario.submit("renamed", ({**item, "unless": str(gate)} for item in items))
    with scenario.watch(job) as watcher:
        scenario.wait_for(job, lambda status: status["succeeded"] > ITEMS // 20)
        assert ahead.stop() == 0
        scenario.workers.remove(ahead)
        done = scenario.status(job)["succeeded"]
        assert done < ITEMS
        gate.touch()
        scenario.wait_for(job, lacks_actor)
        # The worker without it has looked at every message.
        assert wait_until(lambda: scenario.ready_messages() == 0, 300)
        scenario.wait_for(job, lacks_actor)
        status = scenario.status(job)
        assert (status["succeeded"], status["failed"], status["state"]) == (done, 0, "running")
        # What is submitted now is not even published: who would get it lacks the actor.
        whole = scenario.submit("renamed", ({"number": n} for n in range(100)))
        scenario.wait_for(whole, lacks_actor)
        assert (scenario.status(whole)["pending"], scenario.ready_messages()) == (100, 0)
        waiting = scenario.sql("SELECT count(*) FROM callboard.outbox WHERE job_id = %s", whole.id)
        assert waiting == [(0,)]
        other = scenario.submit("work", mixed(100))
        scenario.assert_mixed_completed(other, 100)  # nobody stands in others' way
        scenario.start_worker(threads=4, modules=modules)
        runs = scenario.assert_completed(job, total=ITEMS, retries=0, watcher=watcher)
        scenario.assert_completed(whole, total=100, retries=0)
    assert set(runs.values()) == {1}
    (postponed,) = scenario.sql("SELECT count(*) FROM callboard.outbox")
    assert postponed == (0,)
    dead = sum(fate(n) == "fail" for n in range(100))
    assert wait_until(lambda: scenario.ready_messages("default.XQ") == dead, 300, pause=POLL)


def test_older_workers_end_at_a_migration_that_breaks_them(scenario: Scenario, next_release: Path) -> None:
    """They would hold for ever what they can't record. The next release runs it again, and it counts once."""
    sql = next_release / "sql"
    (sql / "migrations" / f"{NAME}.sql").write_text(BREAKING)
    for file, (was, becomes) in BROKEN.items():
        text = (sql / "queries" / file).read_text()
        assert was in text
        (sql / "queries" / file).write_text(text.replace(was, becomes))
    older, gate = scenario.start_worker(threads=4), scenario.folder / "gate"
    job = scenario.submit("work", gated(mixed(40), gate, 20))
    scenario.wait_at_gate(job, 20, 4)
    assert NAME in migrate(scenario, next_release)
    gate.touch()
    assert wait_until(lambda: not older.process.running(), 300)
    scenario.workers.remove(older)
    assert f"ahead of this code by {NAME}, which older code can't run on" in older.output
    scenario.start_worker(threads=4, arguments=("--path", str(next_release)))
    scenario.assert_mixed_completed(job, 40)
