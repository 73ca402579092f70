"""Whatever is said to jobs while everything else happens: counts stay true, and no item waits for what never comes."""

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from callboard.middleware.publish import lanes
from callboard.sql.pool import Conn
from callboard.sql.rows import Outgoing, PublishClaim
from callboard.sql.states import FINAL, JOB_FINAL
from callboard.sql.writes import actions, claims, jobs, outcomes, publishing, retry_action, sweep
from callboard.sql.writes.requests import NoSuchItem, NotPossible, Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.integration.sql.test_record import Tracking, drift, event
from tests.support.jobs import make_job

#: By the only argument each bulk item is a lane of its own, and children, without one, are another; by what none has,
#: all are one.
LANES: Any = st.sampled_from(["0=1", "customer=1", "customer=2", None])
#: With one of them what waits in the outbox waits for its job's turn.
WIDTHS: Any = st.sampled_from([1, 3, None])
US = Requester("python", "us")
CHOICES: Any = st.sampled_from(
    [
        RetrySelection(), RetrySelection(["cancelled"]), RetrySelection(["failed", "skipped", "cancelled"]),
        RetrySelection(["skipped"]), RetrySelection(items=[0, 2]),
        RetrySelection(error="ValueError"), RetrySelection(error="KeyError"),
    ]
)  # fmt: skip


class Controlled(Tracking):
    """The same, and jobs are cancelled, paused, resumed, limited and retried. Workers drop what belongs to a stopped
    job, and park what belongs to a paused one, sooner or later.
    """

    @initialize(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=2), sealed=st.booleans(), sent=st.booleans())
    def begin(self, sizes: list[int], sealed: bool, sent: bool) -> None:
        """Half of the time their messages are out already: what is said to a job then meets its outcomes."""
        for size in sizes:
            self.jobs.append(make_job(self.conn, size, published=0, sealed=sealed))
            if sent:
                self.messages += self._in_turn(self.jobs[-1])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._say(lambda job: actions.cancel(self.conn, job, US), data)

    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        self._say(lambda job: actions.pause(self.conn, job, US), data)

    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        self._say(lambda job: actions.resume(self.conn, job, US), data)

    @rule(data=st.data(), choice=CHOICES)
    def retry(self, data: st.DataObject, choice: RetrySelection) -> None:
        self._say(lambda job: retry_action.retry(self.conn, job, US, choice), data)
        # By hand what was final may have another attempt.
        self.finals.clear()

    @rule(data=st.data(), by=LANES)
    def limit(self, data: st.DataObject, by: str | None) -> None:
        """By another argument, wider, narrower, or not at all."""
        self._say(lambda job: actions.limit(self.conn, job, US, {"concurrency_by": by}), data)

    @rule(data=st.data(), width=WIDTHS)
    def limit_concurrency(self, data: st.DataObject, width: int | None) -> None:
        self._say(lambda job: actions.limit(self.conn, job, US, {"concurrency": width}), data)

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def fail_too_often(self, data: st.DataObject) -> None:
        out = data.draw(st.sampled_from(self.messages))
        actions.limit(self.conn, out.job, US, {"max_failures": "1% of 1"})
        failed = event(out.job, out.item, out.attempt, "failed", self.workers[0], ran=True)
        outcomes.record(self.conn, [failed], time.monotonic())
        actions.limit(self.conn, out.job, US, {"max_failures": None})

    @rule(data=st.data())
    def be_late(self, data: st.DataObject) -> None:
        self._say(lambda job: actions.limit(self.conn, job, US, {"deadline": "0s"}), data)
        jobs.stop_overdue_jobs(self.conn)

    def _say(self, say: Any, data: st.DataObject) -> None:
        with suppress(NotPossible, NoSuchItem):
            say(data.draw(st.sampled_from(self.jobs)))

    @rule(ended=st.booleans())
    def close_stopped(self, ended: bool) -> None:
        """Everybody has heard of it by now."""
        self.conn.execute("UPDATE callboard.jobs SET control_at = now() - interval '1 h' WHERE control_at IS NOT NULL")
        if ended:
            self.conn.execute("DELETE FROM callboard.running")
        jobs.close_stopped(self.conn)

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Messages of jobs that are told to stand still are dropped or parked."""
        some = data.draw(st.lists(st.sampled_from(self.messages), unique_by=id, min_size=1))
        parked: list[Outgoing] = []
        for out in some:
            found = self._job(out.job)
            if found["stopping"] or found["state"] in ("failed", "cancelled"):
                self._gone(out)
            elif found["state"] == "paused":
                parked.append(out)
        claims.park(self.conn, [(out.job, out.item, out.attempt) for out in parked])
        for out in parked:
            self._gone(out)

    def _gone(self, out: Outgoing) -> None:
        self.messages = [one for one in self.messages if one is not out]

    @rule(vanishes=st.booleans())
    def claim_job(self, vanishes: bool) -> None:
        claim = publishing.claim_job(self.conn)
        if claim is not None and claim.lane_by is not None:
            self._publish_by_lane(claim, vanishes)
        elif claim is not None:
            self.claims.append((claim, publishing.bulk_items(self.conn, claim, claim.watermark, claim.total)[0]))

    @rule(vanishes=st.booleans())
    def publish_in_turn(self, vanishes: bool) -> None:
        claim = publishing.claim_job(self.conn)
        if claim is None:
            return
        if claim.lane_by is not None:
            self._publish_by_lane(claim, vanishes)
            return
        due = publishing.claim_in_turn(self.conn, claim, 10)
        self.messages += due
        self.unsettled += due
        publishing.advance_watermark(self.conn, claim, watermark=claim.watermark, published=0, keep=False)

    def _publish_by_lane(self, claim: PublishClaim, vanishes: bool) -> None:
        """What is claimed may be sent, and settled later or never; its publisher gives the job back, or vanishes."""
        before = self._lanes(claim.job)
        batch = [out for batch in lanes.batches(self.conn, claim, 3) for out in batch]
        after = self._lanes(claim.job)
        for item in after.keys() - before.keys():
            # What was in flight already may be more than fits now.
            assert sum(lane == after[item] for lane in after.values()) <= (claim.lane_width or 0), after
        self.messages += batch
        self.unsettled += batch
        if vanishes:
            self.conn.execute(
                "UPDATE callboard.jobs SET publish_until = now() - interval '1 s' WHERE id = %s", (claim.job,)
            )
        else:
            publishing.advance_watermark(self.conn, claim, watermark=claim.watermark, published=0, keep=False)

    def _lanes(self, job: int) -> dict[int, str]:
        rows = self.conn.execute("SELECT item, lane FROM callboard.lanes WHERE job_id = %s", (job,))
        return {row[0]: row[1] for row in rows}

    @rule()
    def drop_messages_of_ended_jobs(self) -> None:
        sweep.drop_messages_of_ended_jobs(self.conn)

    # What always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def a_sealed_job_with_nothing_left_is_completed(self) -> None:
        assert jobs.close_jobs(self.conn) == []
        for job in self.jobs:
            found = self._job(job)
            done = sum(found[state] for state in FINAL) == found["total"]
            if found["state"] not in ("failed", "cancelled") and not found["stopping"]:
                assert (found["state"] == "completed") == (found["sealed"] and done), found

    @invariant()
    def no_item_is_stranded(self) -> None:
        """Without a loss on the broker's side nothing waits for the search: it is in the bulk range, in the outbox, in
        hand, or in a message that nobody dropped.
        """
        rows = self.conn.execute(
            """
            SELECT i.job_id, i.item, i.attempt FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id
            WHERE i.finished_at IS NULL AND j.finished_at IS NULL AND j.stopping IS NULL
              AND NOT (i.sent_at IS NULL AND i.item >= j.watermark)
              AND NOT EXISTS (SELECT FROM callboard.outbox AS o WHERE (o.job_id, o.item) = (i.job_id, i.item))
              AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE (r.job_id, r.item) = (i.job_id, i.item))
            """
        ).fetchall()
        under_way = {(out.job, out.item, out.attempt) for out in self.messages}
        assert set(rows) <= under_way, set(rows) - under_way

    def teardown(self) -> None:
        """Resumed, and run again as far as they were cancelled, every job comes to its end."""
        self.close_stopped(ended=True)
        for job in self.jobs:
            actions.limit(self.conn, job, US, {"deadline": None})
            with suppress(NotPossible):
                actions.resume(self.conn, job, US)
            retry_action.retry(self.conn, job, US, RetrySelection(["cancelled"]))
            assert self._job(job)["cancelled"] == 0
        super().teardown()
        self.conn.execute("TRUNCATE callboard.actions, callboard.lanes")

    def _done(self, job: dict[str, Any]) -> bool:
        """One that was stopped when nothing was left to do stays so."""
        return job["state"] in JOB_FINAL and not job["cancelled"]

    def _a_round(self, worker: int) -> None:
        self.outbox_claims_lapse()
        self.conn.execute("UPDATE callboard.jobs SET publish_until = NULL")
        for job in self.jobs:
            while sent := self._in_turn(job):
                self._run(worker, sent)
        super()._a_round(worker)

    def _in_turn(self, job: int) -> list[Outgoing]:
        """Publish all of a job that may be published now."""
        claim = publishing.claim_given_job(self.conn, job)
        if claim is None:
            return []
        laned = claim.lane_by is not None
        found = (
            [out for batch in lanes.batches(self.conn, claim, 100) for out in batch]
            if laned
            else publishing.claim_in_turn(self.conn, claim, 100)
        )
        publishing.confirm_outbox(self.conn, found)
        bulk = [] if laned else publishing.bulk_items(self.conn, claim, claim.watermark, claim.total)[0]
        reached = claim.watermark if laned else claim.total
        publishing.advance_watermark(self.conn, claim, watermark=reached, published=len(bulk), keep=False)
        return [*found, *bulk]


@pytest.mark.filterwarnings("default")
def test_whatever_is_said_the_counts_are_true_and_nothing_is_stranded(conn: Conn) -> None:
    conn.execute("SET synchronous_commit = off")
    run_state_machine_as_test(
        lambda: Controlled(conn),  # type: ignore[arg-type]
        settings=settings(
            max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    assert drift(conn) == []
