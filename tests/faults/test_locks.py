"""Everything that writes, at once: flushes that cross each other, publishers, workers, the sweep, and those outside who
cancel, pause, resume, retry and seal. In every moment a recount finds what the counters say, and nothing deadlocks.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
from psycopg.conninfo import conninfo_to_dict

from callboard.middleware.burial import bury
from callboard.sql import controls, reads, writes
from callboard.sql.controls import By, Choice, NotPossible, Overtaken
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import Event, Failure, NewItem, Outgoing, Retry, Running, Settled
from callboard.sql.states import JOB_FINAL
from tests.helpers import wait_until
from tests.jobs import BAD, NOT_NEEDED, make_job, make_worker

JOBS, ITEMS, ROUNDS = 8, 60, 150
BY = By("python", "somebody")
ENDS: Sequence[Settled] = ("succeeded", "succeeded", "failed", "skipped", "retrying")
FAILURES: dict[str, Failure] = {"failed": BAD, "retrying": BAD, "skipped": NOT_NEEDED}
Step = Callable[[Conn, random.Random], object]


class Crowd:
    """The jobs, and all that is done to them."""

    def __init__(self, url: str) -> None:
        self.url = url
        with connect(url) as conn:
            self.jobs = [make_job(conn, ITEMS, published=0, sealed=n % 2 == 0) for n in range(JOBS)]
            self.workers = [make_worker(conn) for _ in range(3)]
            _turn_around(conn)
        self.deadlocks: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.sent: list[Outgoing] = []  # what RabbitMQ was given
        self.over = threading.Event()
        self.drift: list[object] = []

    # One step of each ------------------------------------------------------------------------------------------------

    def flush(self, conn: Conn, chance: random.Random) -> None:
        """Outcomes in many jobs, in an order of their own; many of them stale, repeated, or of the wrong attempt."""
        now = time.monotonic()
        chosen = {
            (out.job, out.item): self._event(out, chance, now)
            for out in chance.choices(self.sent, k=12)
        }  # fmt: skip
        events = list(chosen.values())
        chance.shuffle(events)
        writes.record(conn, events, now)

    def _event(self, out: Outgoing, chance: random.Random, now: float) -> Event:
        state = chance.choice(ENDS)
        attempt = max(1, out.attempt + chance.choice((-1, 0, 0, 0, 1)))
        child = NewItem(
            out.job, "child", "default", f"c{chance.getrandbits(60)}", b'{"args":[],"kwargs":{}}', None, 5
        )
        return Event(
            out.job, out.item, attempt, state, 0.01, now, chance.choice(self.workers), FAILURES.get(state),
            Retry(0.0) if state == "retrying" else None, None, (child,) if chance.random() < 0.02 else (), ran=True,
        )  # fmt: skip

    def publish(self, conn: Conn, chance: random.Random) -> None:
        claim = writes.claim_bulk(conn)
        if claim is not None:
            until = min(claim.watermark + 10, claim.total)
            batch = writes.bulk_items(conn, claim, claim.watermark, until)
            self.sent += batch
            writes.publish_bulk(conn, claim, watermark=until, published=len(batch), keep=False)
            again = writes.claim_redo(conn, claim, 10)
            self.sent += again
            writes.settle_outbox(conn, again)
        due = writes.claim_outbox(conn, 20)
        self.sent += due
        writes.settle_outbox(conn, due)

    def work(self, conn: Conn, chance: random.Random) -> None:
        worker = chance.choice(self.workers)
        some = [(out.job, out.item, out.attempt) for out in chance.choices(self.sent, k=5)]
        for job, item, attempt in some[:2]:
            writes.claim_item(conn, job, item, attempt, worker)
        writes.report_running(conn, worker, [Running(*one, 1.0, "a step") for one in sorted(set(some[2:]))])
        writes.touch_jobs(conn, dict.fromkeys(chance.sample(self.jobs, 4), "a step"))
        writes.park(conn, some[:1])
        writes.beat(conn, worker, [one[:2] for one in some])

    def sweep(self, conn: Conn, chance: random.Random) -> None:
        if chance.random() < 0.2:
            old = "UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s"
            conn.execute(old, (chance.choice(self.workers),))
        for worker in writes.dead_workers(conn):
            bury(conn, worker)
        writes.close_stopped(conn)
        assert writes.close_jobs(conn) == []
        writes.sample_jobs(conn)
        writes.drop_messages_of_stopped_jobs(conn)
        job = chance.choice(self.jobs)
        lost = [(item, attempt) for item, attempt, _ in writes.unheld_items(conn, job, 10)]
        writes.republish(conn, job, lost)

    def control(self, conn: Conn, chance: random.Random) -> None:
        """What people say to jobs; one that ended so often that nothing can be said to it is no fault."""
        job = chance.choice(self.jobs)
        saying = chance.choice(("cancel", "pause", "resume", "resume", "retry", "retry", "seal"))
        self.done[saying] += 1
        try:
            if saying == "retry":
                controls.retry(conn, job, BY, Choice(("failed", "skipped", "cancelled")))
            elif saying == "seal":
                writes.seal_job(conn, job)
            else:
                getattr(controls, saying)(conn, job, BY)
        except (NotPossible, Overtaken):
            self.done[f"{saying} refused"] += 1

    # All at once -----------------------------------------------------------------------------------------------------

    def run(self, name: str, seed: int) -> None:
        """So many steps; what a deadlock undid is done again, as the journal, the sweep and people do."""
        chance = random.Random(seed)
        step: Step = getattr(self, name)
        with connect(self.url) as conn:
            left = ROUNDS
            while left:
                try:
                    step(conn, chance)
                    self.done[name] += 1
                    left -= 1
                except psycopg.errors.DeadlockDetected:
                    self.deadlocks[name] += 1

    def recount(self) -> int:
        """Recount until all is over; how often."""
        count = 0
        with connect(self.url) as conn:
            while not self.over.is_set():
                self.drift += reads.run(conn, reads.verify())["drift"]
                count += 1
        return count

    def finish(self, conn: Conn) -> None:
        """Left alone with publishers and workers that work, every job comes to its end."""
        for job in self.jobs:
            writes.seal_job(conn, job)
        conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h'")
        conn.execute("UPDATE callboard.outbox SET claimed_until = now() WHERE claimed_until IS NOT NULL")
        conn.execute("UPDATE callboard.jobs SET publish_until = NULL")
        last = make_worker(conn)
        assert wait_until(lambda: self._finished(conn, last), 30), [
            self.state(conn, job) for job in self.jobs
        ]

    def _finished(self, conn: Conn, worker: int) -> bool:
        """Whether all are over; else everything is done once that makes them so."""
        if {self.state(conn, job) for job in self.jobs} <= set(JOB_FINAL):
            return True
        for job in self.jobs:
            with suppress(NotPossible):  # most are not paused
                controls.resume(conn, job, BY)
        self.sent = []
        for dead in writes.dead_workers(conn):
            bury(conn, dead)
        writes.close_stopped(conn)
        self.publish(conn, random.Random(0))
        now = time.monotonic()
        ends = {(out.job, out.item): out.attempt for out in self.sent if not out.dead}
        writes.record(
            conn, [Event(*key, attempt, "succeeded", 0.01, now, worker) for key, attempt in ends.items()], now
        )
        for job in self.jobs:
            lost = [(item, attempt) for item, attempt, _ in writes.unheld_items(conn, job, 500)]
            writes.republish(conn, job, lost)
        return False

    def state(self, conn: Conn, job: int) -> str:
        found = reads.run(conn, reads.job(job))
        assert found is not None
        return str(found["state"])


def _turn_around(conn: Conn) -> None:
    """Have the items lie in the reverse order of their keys, which shows a plan that reads a small table as it lies."""
    with conn.transaction():
        conn.execute("CREATE TEMPORARY TABLE turned ON COMMIT DROP AS SELECT * FROM callboard.items")
        conn.execute("DELETE FROM callboard.items")
        conn.execute("INSERT INTO callboard.items SELECT * FROM turned ORDER BY job_id DESC, item DESC")


def counted(conn: Conn, url: str) -> int:
    """The deadlocks that PostgreSQL broke in a database, those included that were seen to by what met with them.

    Each process writes its share when its connection is closed.
    """
    name = conninfo_to_dict(url)["dbname"]
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    assert wait_until(lambda: conn.execute(others, (name,)).fetchone() == (0,), 30)
    row = conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0])


def test_all_that_writes_at_once(fault_database_url: str) -> None:
    crowd = Crowd(fault_database_url)
    with connect(fault_database_url) as conn:
        crowd.publish(conn, random.Random(0))
        names = ["flush"] * 4 + ["publish", "work", "work", "sweep", "control", "control"]
        with ThreadPoolExecutor(len(names) + 1) as pool:
            recounts = pool.submit(crowd.recount)
            runs = [pool.submit(crowd.run, name, seed) for seed, name in enumerate(names)]
            try:
                for run in runs:
                    run.result(120)
            finally:
                crowd.over.set()
        assert recounts.result(30) > 20
        assert crowd.drift == []
        for name in ("cancel", "pause", "resume", "retry", "seal"):
            assert crowd.done[name] > crowd.done[f"{name} refused"], crowd.done
        crowd.finish(conn)
        assert reads.run(conn, reads.verify())["drift"] == []
        broken = counted(conn, fault_database_url)
    print(
        f"{recounts.result()} recounts, {broken} deadlocks: {dict(crowd.deadlocks)}, done: {dict(crowd.done)}"
    )
    assert broken == 0
