"""Workers survive a database that goes away, answers that are lost, and ends that come at a bad moment."""

import os
import re
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dramatiq
import psycopg
import pytest
from dramatiq.brokers.stub import StubBroker
from psycopg_pool import PoolTimeout

import callboard
from callboard.middleware.attempts.in_flight import InFlight
from callboard.middleware.attempts.outcome import SUCCEEDED
from callboard.middleware.journal.journal import Journal
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.consumers import Consumers
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.publish.transport import EnqueueTransport
from callboard.middleware.runtime import Runtime
from callboard.sql.pool import connect
from callboard.sql.reads import queries
from callboard.sql.writes import claims, outcomes, workers
from tests.support.clients import client
from tests.support.databases import as_role, clerk
from tests.support.deliveries import Delivered
from tests.support.jobs import make_job, make_worker
from tests.support.paths import ROOT
from tests.support.process_parts import process_on
from tests.support.vhosts import Broker
from tests.support.workers import StartWorker, Worker, wait_until

TIMEOUT = 300.0


def test_a_claim_whose_answer_was_lost_is_tried_again_and_runs(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row in `running` is this worker's, and the item does not run here: it would wait for this worker to die."""
    runtime = Runtime(database_url, lambda: EnqueueTransport(StubBroker(), print), remote=False)
    claim_item = claims.claim_item
    lost: list[Any] = []

    def lossy(*args: Any, **kwargs: Any) -> Any:
        answer = claim_item(*args, **kwargs)
        if not lost:
            lost.append(answer)
            raise psycopg.OperationalError("the connection is gone")
        return answer

    monkeypatch.setattr(claims, "claim_item", lossy)
    try:
        with connect(database_url) as conn:
            job = make_job(conn, 1)
            runtime.process.worker = make_worker(conn)
            attempt = runtime.in_flight.admit(Delivered(Stamp(job, 0, 1), redelivered=True))
            assert lost
            assert lost[0].taken
            assert attempt is not None
            assert runtime.in_flight.admit(Delivered(Stamp(job, 0, 1), redelivered=True)) is None
            runtime.in_flight.finish(attempt, SUCCEEDED)
            assert wait_until(lambda: (queries.run(conn, queries.job(job)) or {})["state"] == "completed", TIMEOUT)
            assert conn.execute("SELECT count(*) FROM callboard.running").fetchone() == (0,)
    finally:
        runtime.close()


def test_a_worker_whose_database_goes_away_at_its_start_registers_in_the_end(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unregistered it would have no heartbeat, so it would count as dead."""
    runtime = Runtime(database_url, lambda: EnqueueTransport(StubBroker(), print), remote=False)
    register = workers.register_worker
    errors = [
        psycopg.OperationalError("terminating connection"), PoolTimeout("no connection"),
        psycopg.errors.ReadOnlySqlTransaction("a replica"), psycopg.errors.InsufficientPrivilege("no right"),
    ]  # fmt: skip

    def registers(*args: Any) -> int:
        if errors:
            raise errors.pop()
        return register(*args)

    monkeypatch.setattr(workers, "register_worker", registers)
    monkeypatch.setattr("callboard.middleware.runtime.BOOT_RETRY_SECONDS", 0.0)
    broker = StubBroker()
    try:
        runtime.open(dramatiq.Worker(broker, worker_threads=3), {"work": "default"}, {})
        with connect(database_url) as conn:
            found = conn.execute("SELECT id, threads FROM callboard.workers").fetchall()
        assert found == [(runtime.process.worker, 3)]
    finally:
        runtime.close()
        broker.close()


@pytest.mark.parametrize(
    "restored", ["DELETE FROM callboard.workers", "UPDATE callboard.workers SET host = 'backstage'"]
)
def test_a_worker_that_a_restored_database_does_not_know_registers_again(restored: str, database_url: str) -> None:
    """Its id is nobody's there, or that of a process that would beat for both. Nobody would rescue its items."""
    runtime, broker = Runtime(database_url, lambda: EnqueueTransport(StubBroker(), print), remote=False), StubBroker()
    try:
        with connect(database_url) as conn:
            runtime.open(dramatiq.Worker(broker, worker_threads=3), {"work": "default"}, {})
            runtime.add_actor(dramatiq.actor(broker=broker, actor_name="late")(print))
            query = "SELECT id, pid, threads, actors FROM callboard.workers WHERE host = %s"
            here = (socket.gethostname(),)
            assert wait_until(lambda: "late" in (conn.execute(query, here).fetchone() or ((),) * 4)[3], TIMEOUT)
            known = runtime.process.worker
            first_path = runtime.process.runs._path
            assert first_path is not None
            conn.execute(restored.encode())
            assert wait_until(lambda: runtime.process.runs._path != first_path, TIMEOUT)  # the last step of it
            assert runtime.process.worker != known
            found = conn.execute(query, here).fetchall()
            assert found == [(runtime.process.worker, os.getpid(), 3, ["late", "work"])]
            path = runtime.process.runs._path
            assert path is not None
            assert path.exists()
            assert path.name.split(".")[1] == str(runtime.process.worker)
    finally:
        runtime.close()
        broker.close()


def test_a_worker_runs_with_the_rights_that_the_guide_gives_it(
    worker: StartWorker, environment: dict[str, str], tmp_path: Path
) -> None:
    guide = re.findall("GRANT (.*) TO workers;", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    with connect(environment["DATABASE_URL"]) as conn, clerk(conn) as role:
        conn.execute(f'REVOKE ALL ON DATABASE "{conn.info.dbname}" FROM PUBLIC'.encode())
        own = {**environment, "DATABASE_URL": as_role(environment["DATABASE_URL"], role)}
        refused = Worker(["tests.support.stage_actors"], tmp_path / "refused.log", env=own).begin()
        assert wait_until(lambda: not refused.process.running(), TIMEOUT)
        assert refused.process.kill() != 0
        assert f"GRANT {guide[0]} TO {role}" in refused.output
        for right in guide:
            conn.execute(f"GRANT {right} TO {role}".replace("DATABASE app", f'DATABASE "{conn.info.dbname}"').encode())
        worker("tests.support.stage_actors", env=own)
        with client(own, ["generate"]):
            job = callboard.submit("generate", [{"company": "a", "count": 1}], item_key="company")
            assert job.wait(TIMEOUT)["state"] == "completed"


def test_a_worker_of_another_broker_does_not_start_on_the_same_database(
    worker: StartWorker, broker: Broker, environment: dict[str, str], tmp_path: Path
) -> None:
    """It would publish the other's messages on its own broker. When the other has ended, it starts."""
    first = worker("callboard.actors")
    with broker.vhost() as elsewhere:
        other = {**environment, "AMQP_URL": elsewhere}
        refused = Worker(["callboard.actors"], tmp_path / "refused.log", env=other).begin()
        assert wait_until(lambda: not refused.process.running(), TIMEOUT)
        assert refused.process.kill() != 0
        assert "stop the old workers first" in refused.output
        assert "Traceback" not in refused.output
        again = worker("callboard.actors")
        with connect(environment["DATABASE_URL"]) as conn:
            query = "SELECT DISTINCT broker FROM callboard.workers WHERE stopped_at IS NULL"
            ((name,),) = conn.execute(query).fetchall()
        assert name.endswith(
            f"@{socket.gethostname().split('.')[0]}, virtual host {urlsplit(environment['AMQP_URL']).path[1:]}"
        )
        inside = Runtime(environment["DATABASE_URL"], lambda: EnqueueTransport(StubBroker(), print), remote=False)
        with pytest.raises(SystemExit):
            inside.open(dramatiq.Worker(StubBroker(), worker_threads=1), {"work": "default"}, {})
        inside.close()
        assert first.stop() == again.stop() == 0
        worker("callboard.actors", env=other)


def test_an_item_that_ends_while_it_is_reported_leaves_no_row_in_running(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a row would hold up the item's retry until this worker ends."""
    report = outcomes.report_running

    def ends_meanwhile(*args: Any) -> set[tuple[int, int]]:
        if not attempt.ended:
            in_flight.finish(attempt, SUCCEEDED)
        return report(*args)

    monkeypatch.setattr(outcomes, "report_running", ends_meanwhile)
    with connect(database_url) as conn, process_on(database_url) as process:
        in_flight = InFlight(process, Consumers(), lambda: None, lambda: None)
        journal = in_flight.journal = Journal(process, in_flight, lambda *_: None)
        job = make_job(conn, 1)
        attempt = Attempt(job, 0, 1, [Delivered(Stamp(job, 0, 1)).delivery], {}, started=time.monotonic() - 1)
        in_flight._attempts[attempt.key] = attempt
        journal.watch()
        assert wait_until(lambda: not in_flight.attempts(), TIMEOUT)
        assert journal.close(300)
        assert conn.execute("SELECT count(*) FROM callboard.running").fetchone() == (0,)
