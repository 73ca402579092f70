"""All writers at once: flushes in crossing orders, publishers, workers, the sweep, retention, callbacks, and clients
that send, cancel, pause, resume, limit, retry, seal and delete. In every moment a recount
finds what the counters say, and nothing deadlocks.
"""

import random
import time
from collections.abc import Sequence
from contextlib import suppress

from callboard.middleware.callbacks.dispatcher import CallbackDispatcher
from callboard.middleware.journal.rescue import rescue
from callboard.middleware.process.process import Process
from callboard.middleware.publish import lanes
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import Event, Failure, NewItem, OutcomeState, Outgoing, PublishClaim, Retry, Running
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import (
    actions,
    claims,
    jobs,
    outcomes,
    publishing,
    retention,
    sends,
    submission,
    sweep,
    workers,
)
from callboard.sql.writes.lanes import ClaimTakenOver
from callboard.sql.writes.requests import NotPossible
from callboard.sql.writes.retry_action import RetrySelection
from tests.faults.rig.concurrent_writers import BY, ConcurrentWriters, broken_deadlocks, reverse_rows
from tests.support.jobs import BAD, NOT_NEEDED, claim_outbox, make_job, make_worker, targets, unheld
from tests.support.workers import wait_until

JOBS, ITEMS, ROUNDS = 8, 60, 150
ENDS: Sequence[OutcomeState] = ("succeeded", "succeeded", "failed", "skipped", "retrying")
FAILURES: dict[str, Failure] = {"failed": BAD, "retrying": BAD, "skipped": NOT_NEEDED}
ACTORS = ("work", "child", "called")
LIMITS = ({"concurrency": 20}, {"concurrency": None}, {"priority": 3}, {"concurrency_by": "0=3"},
          {"concurrency_by": "x=9"}, {"concurrency_by": None})  # fmt: skip


class Writers(ConcurrentWriters):
    """The jobs, and all that is done to them."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.sent: list[Outgoing] = []  # what RabbitMQ was given
        self.sends: list[Outgoing] = []  # plain sends that are to be published
        self._process = Process(url)
        with connect(url) as conn:
            self.jobs = [self._make(conn, n) for n in range(JOBS)]
            self.workers = [make_worker(conn, *ACTORS) for _ in range(3)]
            reverse_rows(conn, "items", "jobs")

    def _make(self, conn: Conn, number: int) -> int:
        calls = targets("called", "called", "called") if number % 2 else None
        job = make_job(conn, ITEMS, published=0, sealed=number % 2 == 0, targets=calls)
        if number % 4 > 1:
            actions.limit(conn, job, BY, {"concurrency_by": "0=3"} if number % 4 == 3 else {"concurrency": 20})
        return job

    # One step of each ------------------------------------------------------------------------------------------------

    def flush(self, conn: Conn, chance: random.Random) -> None:
        """Outcomes in many jobs, in an order of their own; many of them stale, repeated, or of the wrong attempt."""
        now = time.monotonic()
        chosen = {(out.job, out.item): self._event(out, chance, now) for out in self._some(chance, 12)}
        events = list(chosen.values())
        chance.shuffle(events)
        outcomes.record(conn, events, now)

    def _some(self, chance: random.Random, count: int) -> list[Outgoing]:
        """Of what was sent, the latest more often."""
        return chance.choices(self.sent, k=count // 2) + chance.choices(self.sent[-40:], k=count - count // 2)

    def _event(self, out: Outgoing, chance: random.Random, now: float) -> Event:
        state = chance.choice(ENDS)
        attempt = max(1, out.attempt + chance.choice((-1, 0, 0, 0, 1)))
        child = NewItem(out.job, "child", "default", f"c{chance.getrandbits(60)}", b'{"args":[],"kwargs":{}}', None, 5)
        return Event(
            out.job, out.item, attempt, state, 0.01, now, chance.choice(self.workers), FAILURES.get(state),
            Retry(0.0) if state == "retrying" else None, None, None, (child,) if chance.random() < 0.02 else (),
            ran=True, dead=state == "failed" and chance.random() < 0.5,
        )  # fmt: skip

    def publish(self, conn: Conn, chance: random.Random) -> None:
        claim = publishing.claim_job(conn)
        if claim is not None:
            until = claim.watermark
            if claim.lane_by is not None:
                self._by_lane(conn, claim, chance)
            else:
                until = min(until + 10, claim.total)
                self._settle(conn, publishing.claim_in_turn(conn, claim, 10), chance)
            batch, _ = publishing.bulk_items(conn, claim, claim.watermark, until)
            self.sent += batch
            publishing.advance_watermark(conn, claim, watermark=until, published=len(batch), keep=False)
        self._settle(conn, claim_outbox(conn, 20), chance)

    def _by_lane(self, conn: Conn, claim: PublishClaim, chance: random.Random) -> None:
        with suppress(ClaimTakenOver):
            for batch in lanes.batches(conn, claim, 20):
                self._settle(conn, batch, chance)

    def _settle(self, conn: Conn, batch: list[Outgoing], chance: random.Random) -> None:
        """What RabbitMQ has may have run before that is said, and be there though nobody knows."""
        self.sent += batch
        if chance.random() < 0.7:
            publishing.confirm_outbox(conn, batch)
        else:
            publishing.release_outbox(conn, batch)

    def work(self, conn: Conn, chance: random.Random) -> None:
        worker = chance.choice(self.workers)
        some = [(out.job, out.item, out.attempt) for out in self._some(chance, 12)]
        for job, item, attempt in some[:2]:
            claims.claim_item(conn, job, item, attempt, worker)
        claims.release_item(conn, *some[0], worker)
        outcomes.report_running(conn, worker, [Running(*one, 1.0, "a step") for one in sorted(set(some[2:]))])
        hung = [Running(*one, 1.0, None, None, "here", "there") for one in set(some[2:])]
        outcomes.report_running(conn, worker, hung)
        outcomes.touch_jobs(conn, dict.fromkeys(chance.sample(self.jobs, 4), ("a step", 0.0)))
        claims.park(conn, some[:6])
        for job, item, attempt in some[6:]:
            claims.postpone(conn, job, item, attempt, "work")
        workers.beat(conn, worker, [one[:2] for one in some])

    def sweep(self, conn: Conn, chance: random.Random) -> None:
        if chance.random() < 0.2:
            old = "UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s"
            conn.execute(old, (chance.choice(self.workers),))
        for worker in workers.dead_workers(conn):
            rescue(conn, worker)
        if chance.random() < 0.2:
            conn.execute("UPDATE callboard.send_leases SET ends_at = now()")
        for job, leases in sends.lapsed_send_leases(conn):
            sends.queue_lapsed_sends(conn, job, leases)
        jobs.stop_overdue_jobs(conn)
        jobs.try_close_stopped(conn)
        assert jobs.close_jobs(conn) == []
        sweep.sample_jobs(conn)
        sweep.drop_messages_of_ended_jobs(conn)
        claims.make_postponed_due(conn)
        job = chance.choice(self.jobs)
        lost = unheld(conn, job, 10)
        sweep.republish(conn, job, lost)

    def call(self, conn: Conn, _: random.Random) -> None:
        CallbackDispatcher(self._process).turn(conn)

    def send(self, conn: Conn, chance: random.Random) -> None:
        """Plain sends into one or several jobs. Their process publishes some of them, and can't publish others."""
        given = chance.sample(self.jobs, chance.choice((1, 3)))
        new = [self._sent_to(job, chance) for job in given]
        held = sends.renew_send_leases(conn, {out.lease or 0 for out in self.sends if out.job in given})
        added = sends.add_items(conn, new, publishing=chance.random() < 0.8, leases=held)
        for item, place in zip(new, added, strict=True):
            if place and place[1]:
                self.sends.append(
                    Outgoing(
                        item.job, place[0], 1, 0, suspect=False, actor="child", queue="default",
                        message_id=item.message_id, args=item.args, options=None, sent_ms=5, lease=place[1],
                    )
                )  # fmt: skip
        batch, self.sends = self.sends[:-6], self.sends[-6:]
        published = [out for out in batch if chance.random() < 0.7]
        self.sent += published
        sends.queue_sends(conn, [out for out in batch if out not in published], tried=chance.random() < 0.5)
        if chance.random() < 0.5:
            sends.end_send_leases(conn, {out.lease or 0 for out in batch} - {out.lease for out in self.sends})

    @staticmethod
    def _sent_to(job: int, chance: random.Random) -> NewItem:
        return NewItem(job, "child", "default", f"s{chance.getrandbits(60)}", b'{"args":[1],"kwargs":{}}', None, 5)

    def retain(self, conn: Conn, chance: random.Random) -> None:
        """Delete a job that is over, and make another in its place."""
        place = chance.randrange(JOBS)
        if retention.mark_deleted(conn, [self.jobs[place]]):
            self.jobs[place] = self._make(conn, place)
            self.done["left"] += 1
        retention.mark_expired(conn, None)
        for job in retention.deleted_jobs(conn):
            for _ in retention.delete_rows(conn, job):
                pass
        retention.delete_old_rows(conn, None)

    def take_action(self, conn: Conn, chance: random.Random) -> None:
        """A random action on a random job."""
        action = chance.choice(("cancel", "pause", "resume", "resume", "retry", "retry", "limit", "seal"))
        states = chance.choice((("failed", "skipped", "cancelled"), ("failed",), ("cancelled",)))
        given = RetrySelection(states) if action == "retry" else chance.choice(LIMITS)
        self.act(conn, chance.choice(self.jobs), action, given)

    def again(self, conn: Conn, chance: random.Random) -> None:
        """A job is cancelled and goes on at once."""
        job = chance.choice(self.jobs)
        self.act(conn, job, "cancel")
        with conn.transaction():
            conn.execute("UPDATE callboard.jobs SET control_at = now() - interval '1 h' WHERE id = %s", (job,))
        jobs.try_close_stopped(conn)
        self.act(
            conn, job, "retry", RetrySelection(chance.choice((("failed", "cancelled"), ("cancelled",), ("failed",))))
        )

    # The end ---------------------------------------------------------------------------------------------------------

    def finish(self, conn: Conn) -> None:
        """With publishers and workers only, every job ends."""
        for job in self.jobs:
            submission.seal_job(conn, job)
        conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h'")
        conn.execute("UPDATE callboard.outbox SET claimed_until = now() WHERE claimed_until IS NOT NULL")
        conn.execute("UPDATE callboard.jobs SET publish_until = NULL")
        last = make_worker(conn, *ACTORS)
        chance = random.Random(0)
        assert wait_until(lambda: self._finished(conn, last, chance), 300), [self.state(conn, job) for job in self.jobs]

    def _finished(self, conn: Conn, worker: int, chance: random.Random) -> bool:
        """Whether all are over; else everything is done once that makes them so."""
        if {self.state(conn, job) for job in self.jobs} <= set(JOB_FINAL):
            return True
        for job in self.jobs:
            with suppress(NotPossible):  # most are not paused
                actions.resume(conn, job, BY)
        self.sent = []
        for dead in workers.dead_workers(conn):
            rescue(conn, dead)
        jobs.try_close_stopped(conn)
        claims.make_postponed_due(conn)
        self.publish(conn, chance)
        now = time.monotonic()
        ends = {(out.job, out.item): out.attempt for out in self.sent if not out.dead}
        outcomes.record(
            conn, [Event(*key, attempt, "succeeded", 0.01, now, worker) for key, attempt in ends.items()], now
        )
        for job in self.jobs:
            lost = unheld(conn, job, 500)
            sweep.republish(conn, job, lost)
        return False


def test_all_that_writes_at_once(fault_database_url: str) -> None:
    writers = Writers(fault_database_url)
    with connect(fault_database_url) as conn:
        writers.publish(conn, random.Random(0))
        names = ["flush"] * 4 + [
            "publish",
            "publish",
            "work",
            "work",
            "sweep",
            "take_action",
            "again",
            "call",
            "send",
            "retain",
        ]
        every = ["cancel", "pause", "resume", "retry", "seal", "limit"]
        writers.run(names, ROUNDS, actions=every, recounts=21)
        assert writers.wrong == []
        writers.finish(conn)
        assert queries.run(conn, queries.verify())["drift"] == []
        deadlocks = broken_deadlocks(conn)
    print(f"{writers.recounts} recounts, {deadlocks} deadlocks: {dict(writers.deadlocks)}, done: {dict(writers.done)}")
    assert deadlocks == 0
