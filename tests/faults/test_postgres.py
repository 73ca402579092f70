"""PostgreSQL fails in every way while items run. CALLBOARD_TEST_LONG=1 for longer."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import callboard
from callboard.commands.services import Server
from callboard.sql.pool import Conn, connect
from tests.faults.rig.proxy import Proxy, proxy
from tests.faults.rig.scenario import Scenario, gated, mixed, seconds_since
from tests.support.timer import Timer
from tests.support.workers import Worker, wait_until

LONG = bool(os.environ.get("CALLBOARD_TEST_LONG"))
#: They wait more than they work, so that a few last through a fault.
ITEMS, ITEM_SECONDS = 12_000 if LONG else 320, 0.04
#: The first of the items that wait for the fault; and how many wait for a second one, which are fewer than threads.
FIRST, LAST = 150, 4
#: Seconds in which a worker goes on by itself once the database is back; and one that stood still meanwhile.
RECOVERY, LATEST = 10.0, 60.0
#: Lines that a process may log at the beginning of an outage, besides one a second; and its share of a core.
FIRST_LINES = 6
SHARE = 0.25
ITEMS_LOGGERS = ("[dramatiq.worker.WorkerThread]", "[dramatiq.middleware.retries.Retries]")
AWAY, BACK = "the database can't be written to; trying again", "the database can be written to again, after"
#: What is said to who finds no place, by the server or by PgBouncer, which found none.
TAKEN = ("too many clients", "server login has been failing")


def cpu(pid: int) -> float:
    """Seconds of processor time that a process used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lines_of(worker: Worker) -> int:
    """Lines that it logged so far, tracebacks line by line; but not what Dramatiq says of items that raise."""
    count, counts = 0, True
    for line in worker.output.splitlines():
        if line.startswith("["):
            counts = not any(name in line for name in ITEMS_LOGGERS)
        count += counts
    return count


@contextmanager
def quiet(*workers: Worker) -> Iterator[None]:
    """Meanwhile no process of these workers is busy, or logs more than a line a second."""
    pids = [pid for worker in workers for pid in worker.children()]
    used, said, began = sum(map(cpu, pids)), sum(map(lines_of, workers)), time.monotonic()
    yield
    lasted = seconds_since(began)
    used, said = sum(map(cpu, pids)) - used, sum(map(lines_of, workers)) - said
    print(f"{lasted:.1f} s: {used:.2f} s of processor, {said} lines, of {len(workers)} workers")
    assert said <= len(workers) * (lasted + FIRST_LINES), workers[0].output[-4000:]
    assert used <= len(workers) * lasted * SHARE


def refused(worker: Worker) -> bool:
    """Whether it found no place."""
    return any(text in worker.output for text in TAKEN)


def recovers(scenario: Scenario, job: callboard.Job, since: Timer, held: int = 0) -> float:
    """The database is back since then: the job goes on, but for the items that are `held`. After how many seconds."""
    before = scenario.status(job)["succeeded"]
    scenario.wait_for(job, lambda status: status["succeeded"] > before or status["total"] - ended(status) <= held)
    took = since.seconds
    print(f"recovered after {took:.2f} s")
    assert took < LATEST
    return took


def ended(status: dict[str, Any]) -> int:
    """The items of a job that have ended."""
    return int(status["succeeded"] + status["failed"] + status["skipped"])


def prove(scenario: Scenario, job: callboard.Job, watcher: Any) -> None:
    """Everything ran and counts once, and no message was lost: none was acknowledged before its commit."""
    scenario.assert_mixed_completed(job, ITEMS, watcher=watcher, timeout=600)
    assert "had lost their messages" not in scenario.log()
    print(f"{scenario.run_log.repeated(job.id)} runs twice")


def begun(scenario: Scenario, last: Path | None = None) -> tuple[callboard.Job, Path]:
    """A job that two workers are in the middle of; most of its items wait for the file, the last few for `last`."""
    for _ in range(2):
        scenario.start_worker()
    gate = scenario.folder / "gate"
    items = list(gated(mixed(ITEMS, ITEM_SECONDS), gate, FIRST))
    if last:
        items[-LAST:] = gated(items[-LAST:], last, 0)
    job = scenario.submit("work", items)
    scenario.wait_at_work(job, 90, FIRST, threads=2 * 8)
    return job, gate


def test_stopped_for_a_while_and_a_worker_killed_meanwhile(scenario: Scenario, breakable_postgres: Server) -> None:
    """The killed worker had not acknowledged items that it could not commit: they run again, and count once."""
    job, gate = begun(scenario)
    with scenario.watch(job) as watcher:
        scenario.wait_at_gate(job, FIRST, threads=2 * 8)
        breakable_postgres.stop()
        gate.touch()
        with quiet(*scenario.workers):
            assert wait_until(lambda: all(AWAY in worker.output for worker in scenario.workers), 300)
            time.sleep(60 if LONG else 8)
            assert not breakable_postgres.running()
        scenario.workers[0].kill()
        breakable_postgres.start()
        recovers(scenario, job, Timer())
        prove(scenario, job, watcher)
    assert wait_until(lambda: scenario.workers[1].output.count(BACK), 300)  # its master passes it on
    assert scenario.workers[1].output.count(BACK) == 1
    assert scenario.run_log.run_counts(job.id).total() > ITEMS


def test_restarted_and_killed(scenario: Scenario, breakable_postgres: Server) -> None:
    last = scenario.folder / "last"
    job, first = begun(scenario, last)
    with scenario.watch(job) as watcher:
        took = []
        for gate, end, held in ((first, breakable_postgres.stop, LAST), (last, breakable_postgres.kill, 0)):
            end()
            gate.touch()
            assert not breakable_postgres.running()
            breakable_postgres.start()
            took.append(recovers(scenario, job, Timer(), held))
        assert min(took) < RECOVERY
        prove(scenario, job, watcher)


def terminated(admin: Conn) -> int:
    """End every session of the database but this one; how many there were."""
    return admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).rowcount


def test_every_connection_terminated_again_and_again(scenario: Scenario) -> None:
    job, gate = begun(scenario)
    gate.touch()
    count = 0
    with scenario.watch(job) as watcher, psycopg.connect(scenario.database_url, autocommit=True) as admin:
        with quiet(*scenario.workers):
            until = time.monotonic() + (20 if LONG else 5)

            def enough() -> bool:
                nonlocal count
                count += terminated(admin)
                return count > 10 and time.monotonic() > until

            assert wait_until(enough, 300, pause=0.1)
        recovers(scenario, job, Timer())
        prove(scenario, job, watcher)
    print(f"{count} connections terminated")


def test_out_of_connections(scenario: Scenario, breakable_postgres: Server) -> None:
    """Other connections take every slot while those of Callboard are cut, until it has none."""
    job, gate = begun(scenario)
    recorded = "SELECT succeeded FROM callboard.jobs WHERE id = %s"
    with scenario.watch(job) as watcher, psycopg.connect(scenario.database_url, autocommit=True) as admin:
        with quiet(*scenario.workers), ExitStack() as taken:
            until = time.monotonic() + 300
            while True:
                gate.touch()
                with suppress(psycopg.OperationalError):
                    while True:
                        taken.callback(psycopg.connect(breakable_postgres.url).close)
                if not terminated(admin) and all(map(refused, scenario.workers)):
                    stood = admin.execute(recorded, (job.id,)).fetchone()
                    time.sleep(3)
                    if not terminated(admin):  # nobody took a place that another's end left just now
                        break
                assert time.monotonic() < until
            assert admin.execute(recorded, (job.id,)).fetchone() == stood
        recovers(scenario, job, Timer())
        prove(scenario, job, watcher)


#: What a flush has in it, and what every statement has.
FLUSH, ANY = b"UPDATE callboard.items AS i", b"callboard."
FULL = """
CREATE FUNCTION callboard.full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$
"""


def test_the_servers_disk_is_full(scenario: Scenario) -> None:
    job, gate = begun(scenario)
    scenario.sql(FULL)
    with scenario.watch(job) as watcher:
        with quiet(*scenario.workers):
            scenario.sql("CREATE TRIGGER full_disk BEFORE UPDATE ON callboard.items EXECUTE FUNCTION callboard.full()")
            stood = scenario.status(job)["succeeded"]
            gate.touch()
            assert wait_until(
                lambda: all("No space left on device" in worker.output for worker in scenario.workers), 300
            )
            time.sleep(3)
            assert scenario.status(job)["succeeded"] == stood
        scenario.sql("DROP TRIGGER full_disk ON callboard.items")
        recovers(scenario, job, Timer())
        prove(scenario, job, watcher)
    assert scenario.status(job)["failed"] == len([n for n in range(ITEMS) if n % 20 == 0])


def every(nth: int, statement: bytes) -> Callable[[bytes], str]:
    """Have every nth of these statements done, which is to say committed, and its answer lost."""
    lock, seen = threading.Lock(), 0

    def judge(data: bytes) -> str:
        nonlocal seen
        if statement not in data:
            return "pass"
        with lock:
            seen += 1
            return "pass" if seen % nth else "after"

    return judge


@pytest.fixture
def between(worker_database_url: str, environment: dict[str, str]) -> Iterator[Proxy]:
    """A proxy before the database; statements go through it as text."""
    found = conninfo_to_dict(worker_database_url)
    with proxy(f"{found['host']}/.s.PGSQL.{found.get('port', 5432)}") as made:
        environment["DATABASE_URL"] = (
            f"postgresql://postgres@127.0.0.1:{made.port}/{quote(str(found['dbname']))}?sslmode=disable&gssencmode=disable"
        )
        environment["CALLBOARD_PREPARE"] = "off"
        yield made


@pytest.mark.parametrize(("nth", "statement"), [(4, FLUSH), (25, ANY)], ids=["of a flush", "of anything"])
def test_the_connection_breaks_within_the_commit(
    nth: int, statement: bytes, between: Proxy, scenario: Scenario
) -> None:
    """As in a failover: the transaction is committed, and its client gets no answer. Repeating the flush changes
    nothing; nor does repeating a claim, a heartbeat, or a publisher's confirmation.
    """
    job, gate = begun(scenario)
    with scenario.watch(job) as watcher:
        between.judge = every(nth, statement)
        gate.touch()
        # Workers ask all the while; and each of these has a flush at least, however many outcomes it carries.
        assert statement == FLUSH or wait_until(lambda: between.cuts >= 3, 300)
        while between.cuts < 3:
            more = scenario.submit("work", [{"number": n} for n in range(20)])
            scenario.assert_completed(more, total=20)
        prove(scenario, job, watcher)
    assert scenario.run_log.run_counts(job.id).total() == sum(
        {0: 3, 1: 2}.get(n % 20, 1) for n in range(ITEMS)
    )  # nothing runs twice
    print(f"{between.cuts} answers lost")
    with connect(scenario.database_url) as conn:
        twice = conn.execute(
            "SELECT count(*) FROM callboard.attempts WHERE job_id = %s AND kind = 'crashed'", (job.id,)
        ).fetchone()
    assert twice == (0,)
