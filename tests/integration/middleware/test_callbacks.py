"""Callbacks of a job: queued by whatever ends it, delivered to actors once and to webhooks at least once."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Signal
from typing import Any

import psycopg
import pytest
import standardwebhooks

import callboard
from callboard.commands.main import main
from callboard.middleware.callbacks import dispatcher as delivery
from callboard.middleware.callbacks import webhook
from callboard.middleware.callbacks.dispatcher import CallbackDispatcher
from callboard.middleware.message import envelope
from callboard.middleware.process import outage
from callboard.middleware.process.process import Process
from callboard.sql import timings
from callboard.sql.callback_targets import Targets
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.rows import Event
from callboard.sql.statements import documented, statement
from callboard.sql.writes import actions, callbacks, outcomes, retry_action, submission
from callboard.sql.writes.jobs import close_jobs, close_stopped, recount_jobs
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support import documents
from tests.support.jobs import claim_outbox, make_job, make_staged, record, status, targets
from tests.support.pipeline import TIMEOUT, Pipeline, running_pipeline
from tests.support.receiver import Receiver, receiver
from tests.support.vhosts import Broker
from tests.support.webapp import get, open_app
from tests.support.workers import wait_until

ANNA = Requester("python", "anna")
ALL = targets("tell", "tell", "tell")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("CALLBOARD_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("CALLBOARD_WEBHOOK_PRIVATE", "on")
    for limit in ("CONNECT_SECONDS", "ANSWER_SECONDS", "TOTAL_SECONDS"):
        monkeypatch.setattr(webhook, limit, TIMEOUT)
    monkeypatch.setattr(timings, "WEBHOOK_LEASE_SECONDS", TIMEOUT)
    with receiver() as made:
        yield made


@pytest.fixture
def part(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CallbackDispatcher]:
    """A dispatcher that retries soon; its thread is not running."""
    monkeypatch.setattr(delivery, "FIRST_PAUSE_SECONDS", 0.05)
    made = CallbackDispatcher(Process(database_url))
    yield made
    made.process.stopping = True
    made.close(0)
    made.process.close()


def hook(here: Receiver, path: str = "") -> Targets:
    """Webhooks at the receiver for every end."""
    return targets(*[here.url + path] * 3)


def deliver(part: CallbackDispatcher, conn: Conn, until: Callable[[], Any]) -> None:
    """Run the dispatcher's turns until then."""

    def turn() -> bool:
        part._periodic._wake.clear()
        part.turn(conn)
        part._periodic._wake.wait(0.02)  # or until a webhook has ended
        return bool(until())

    assert wait_until(turn, TIMEOUT, pause=0.0)


def posting(part: CallbackDispatcher) -> bool:
    """Whether the thread of some webhook is alive: it has still to record or to log what came of it."""
    return any(post.is_alive() for post in part._posts)


def listed(conn: Conn, job: int) -> list[dict[str, Any]]:
    return queries.run(conn, queries.callbacks(job))


def over(conn: Conn, job: int) -> bool:
    """Whether all of the job's callbacks are delivered or given up."""
    return all(callback["state"] != "waiting" for callback in listed(conn, job))


def done(conn: Conn, calls: Targets, *, items: int = 2, name: str = "a job") -> int:
    """A job that is completed."""
    job = make_job(conn, items, name=name, targets=calls)
    record(conn, job, {"succeeded": range(items)})
    return job


# Queued by what ends a job ------------------------------------------------------------------------------------------


def by_record(conn: Conn) -> int:
    job = make_job(conn, 3, targets=ALL)
    record(conn, job, {"succeeded": [0, 1]})
    assert listed(conn, job) == []
    record(conn, job, {"failed": [2]})
    return job


def by_seal_job(conn: Conn) -> int:
    job = make_job(conn, 2, sealed=False, targets=ALL)
    record(conn, job, {"succeeded": range(2)})
    assert listed(conn, job) == []
    submission.seal_job(conn, job)
    return job


def by_close_stopped(conn: Conn) -> int:
    job = make_job(conn, 2, published=0, targets=ALL)
    actions.cancel(conn, job, ANNA)
    return job


def by_close_jobs(conn: Conn) -> int:
    job = done(conn, ALL)
    conn.execute("DELETE FROM callboard.callbacks")
    conn.execute("UPDATE callboard.jobs SET state = 'running', finished_at = NULL WHERE id = %s", (job,))
    assert close_jobs(conn) == [job]
    return job


def by_fail_submission(conn: Conn) -> int:
    job = make_job(conn, 2, sealed=False, targets=ALL)
    submission.fail_submission(conn, job, "its file has gone")
    return job


def by_fail_abandoned(conn: Conn) -> int:
    job = make_job(conn, 2, sealed=False, targets=ALL)
    conn.execute("UPDATE callboard.jobs SET submitting_until = now() - interval '1 s' WHERE id = %s", (job,))
    assert submission.fail_abandoned_submissions(conn) == [job]
    return job


def by_end_parent(conn: Conn) -> int:
    job, _ = make_staged(conn, on_failure="stop", targets=ALL)
    return job


ENDS = {
    "record": by_record, "seal_job": by_seal_job, "close_stopped": by_close_stopped, "close_jobs": by_close_jobs,
    "fail_submission": by_fail_submission, "fail_abandoned_submissions": by_fail_abandoned, "end_parent": by_end_parent,
}  # fmt: skip


def ends_jobs(name: str) -> bool:
    """Whether a statement sets a job's `finished_at` to a time, itself or by the function that counts outcomes."""
    updates = re.findall(
        r"UPDATE callboard\.jobs\b.*?(?=\bRETURNING\b|\)\s*,\s*\w+ AS \(|\Z)", statement(name), re.DOTALL
    )
    sets = any(re.search(r"\bfinished_at = (?!NULL)", update.partition("WHERE")[0]) for update in updates)
    return sets or "callboard.count_outcomes(" in statement(name)


def test_every_statement_that_ends_a_job_is_tested_here() -> None:
    """A new statement must be added to ENDS; what discards a refused submission takes its callbacks away."""
    assert {name for name in documented() if ends_jobs(name)} == {*ENDS, "discard_submission"}


@pytest.mark.parametrize("name", sorted(ENDS))
def test_each_end_of_a_job_queues_its_callbacks(name: str, conn: Conn) -> None:
    job = ENDS[name](conn)
    now = status(conn, job)
    [callback] = listed(conn, job)
    assert now["state"] in ("completed", "failed", "cancelled")
    assert (callback["on"], callback["state"], callback["target"]) == (now["state"], "waiting", "tell")
    [claimed] = callbacks.claim_callbacks(conn, webhooks=False, limit=9)
    # Its parts are derived as they were: nothing of the job is missing, and its times are times.
    assert delivery.payload(conn, claimed) == {**now, "id": callback["id"], "job": job}
    assert "callbacks" not in claimed.ended
    # Said again, it ends nothing, and calls nobody.
    record(conn, job, {"succeeded": range(2)})
    submission.seal_job(conn, job)
    submission.fail_submission(conn, job, "again")
    close_stopped(conn)
    close_jobs(conn)
    submission.fail_abandoned_submissions(conn)
    assert len(listed(conn, job)) == 1


def test_only_the_callbacks_of_the_final_state_are_queued(conn: Conn) -> None:
    job = done(conn, targets(["tell", "https://a/b?token=1"], "other"))
    assert [(c["on"], c["target"]) for c in listed(conn, job)] == [
        ("completed", "tell"),
        ("completed", "https://a/b?***"),
    ]
    assert listed(conn, done(conn, targets(on_cancel="tell"))) == []
    assert listed(conn, done(conn, None)) == []


def test_a_flush_queues_the_callbacks_of_the_jobs_that_it_ends(conn: Conn) -> None:
    jobs = [make_job(conn, 2, targets=ALL) for _ in range(3)]
    now = time.monotonic()
    events = [
        Event(job, item, 1, "succeeded", 0.01, now, 1)
        for job, items in zip(jobs, (1, 2, 1), strict=True)
        for item in range(items)
    ]
    outcomes.record(conn, events, now)
    assert [len(listed(conn, job)) for job in jobs] == [0, 1, 0]


def test_a_retried_job_calls_again_with_a_new_id_and_each_call_describes_its_own_end(conn: Conn) -> None:
    job = make_job(conn, 2, targets=ALL)
    record(conn, job, {"succeeded": [0], "failed": [1]})
    first = status(conn, job)
    retry_action.retry(conn, job, ANNA, RetrySelection())
    record(conn, job, {"succeeded": [1]}, attempt=2)
    second = status(conn, job)
    found = callbacks.claim_callbacks(conn, webhooks=False, limit=9)
    told = sorted((delivery.payload(conn, one) or {} for one in found), key=lambda one: str(one["finished_at"]))
    assert [{**one, "id": job} for one in told] == [{**first, "job": job}, {**second, "job": job}]
    assert (told[0]["failed"], told[1]["failed"]) == (1, 0)
    assert len({one["id"] for one in told}) == 2


def test_an_end_that_is_rolled_back_queues_no_callback(conn: Conn) -> None:
    job = make_job(conn, 2, targets=ALL)
    with conn.transaction(force_rollback=True):
        record(conn, job, {"succeeded": range(2)})
        assert len(listed(conn, job)) == 1
    assert listed(conn, job) == []


def test_a_change_after_the_end_queues_no_callback(conn: Conn) -> None:
    job = done(conn, ALL)
    conn.execute("UPDATE callboard.jobs SET finished_at = now() - interval '1 d' WHERE id = %s", (job,))
    recount_jobs(conn, [job])
    assert len(listed(conn, job)) == 1


def test_webhooks_and_messages_are_claimed_apart_and_no_webhook_of_a_full_host(conn: Conn) -> None:
    done(conn, targets(["tell", "https://a/", "https://b/"]))
    assert callbacks.claim_callbacks(conn, webhooks=True, limit=9, full=["a", "b"]) == []
    [one] = callbacks.claim_callbacks(conn, webhooks=True, limit=9, full=["a"])
    assert one.url == "https://b/"
    [other] = callbacks.claim_callbacks(conn, webhooks=True, limit=9)
    assert other.url == "https://a/"
    [message] = callbacks.claim_callbacks(conn, webhooks=False, limit=9)
    assert (message.actor, message.queue, message.tries) == ("tell", "mail", 1)
    for webhooks in (True, False):
        assert callbacks.claim_callbacks(conn, webhooks=webhooks, limit=9) == []


@pytest.mark.parametrize("webhooks", [True, False])
def test_tenants_with_many_callbacks_come_in_turn(webhooks: bool, conn: Conn) -> None:
    """Also those of one host, and when it was full meanwhile; and those without a tenant."""
    unused: Any = None
    dispatcher, calls = CallbackDispatcher(unused), targets("https://a/" if webhooks else "tell")
    for tenant in ("many", "many", "many", "more", "more", "more", "", "one"):
        record(conn, make_job(conn, 1, tenant=tenant, targets=calls), {"succeeded": [0]})
    served = list[str]()
    for _ in range(8):
        assert dispatcher._claim(conn, webhooks=not webhooks, limit=1, full=[]) == []
        assert dispatcher._claim(conn, webhooks=webhooks, limit=1, full=["a", ""]) == []
        [one] = dispatcher._claim(conn, webhooks=webhooks, limit=1, full=[])
        served.append(one.tenant)
    assert served == ["", "many", "more", "one", "many", "more", "many", "more"]


def test_hosts_and_tenants_come_in_turn(conn: Conn) -> None:
    unused: Any = None
    dispatcher = CallbackDispatcher(unused)
    two_of_each = [("x", ["https://a/", "https://b/"]), ("y", ["https://a/"])] * 2
    for tenant, calls in (*two_of_each, ("z", ["https://c/"])):
        record(conn, make_job(conn, 1, tenant=tenant, targets=targets(calls)), {"succeeded": [0]})
    claimed = [dispatcher._claim(conn, webhooks=True, limit=1, full=[]) for _ in range(8)]
    served = [(one.host, one.tenant) for found in claimed for one in found]
    assert served == [("a", "x"), ("a", "y"), ("b", "x"), ("c", "z"), ("a", "x"), ("a", "y"), ("b", "x")]


# Webhooks -----------------------------------------------------------------------------------------------------------


def test_a_webhook_gets_the_job_as_the_api_gives_it_signed(
    conn: Conn, here: Receiver, part: CallbackDispatcher
) -> None:
    job = done(conn, hook(here, "?token=1"))
    deliver(part, conn, lambda: over(conn, job))
    [call] = here.calls
    [callback] = listed(conn, job)
    assert (callback["state"], callback["tries"], callback["error"]) == ("delivered", 1, None)
    assert call.id == callback["id"]
    assert call.path == "/hook?token=1"
    assert call.told == {**status(conn, job), "id": callback["id"], "job": job}
    assert verified(call.headers, call.body)
    assert not verified(call.headers, call.body + b" ")
    assert not verified({**call.headers, "webhook-timestamp": "1"}, call.body)


def verified(headers: Any, body: bytes) -> bool:
    """Verify as the guide shows, and as the library of Standard Webhooks does."""
    names: dict[str, Any] = {}
    exec(documents.block("python", "hmac.compare_digest"), names)  # noqa: S102
    genuine = bool(names["genuine"](SECRET, headers, body))
    try:
        standardwebhooks.Webhook(SECRET).verify(body, headers)
    except standardwebhooks.WebhookVerificationError:
        assert not genuine
    else:
        assert genuine
    return genuine


def test_a_receiver_that_fails_is_tried_again_under_the_same_id(
    conn: Conn, here: Receiver, part: CallbackDispatcher
) -> None:
    here.answers.extend([500, 404])
    job = done(conn, hook(here))
    deliver(part, conn, lambda: over(conn, job))
    assert len({call.id for call in here.calls}) == 1
    assert len({call.body for call in here.calls}) == 1
    [callback] = listed(conn, job)
    assert (len(here.calls), callback["state"], callback["tries"]) == (3, "delivered", 3)


def test_a_waiting_callback_shows_why_its_last_try_failed(
    conn: Conn, here: Receiver, part: CallbackDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FIRST_PAUSE_SECONDS", 60.0)
    here.usual = 500
    job = done(conn, hook(here))
    deliver(part, conn, lambda: listed(conn, job)[0]["error"])
    [callback] = listed(conn, job)
    assert callback["error"] == "the receiver answered 500 Internal Server Error"
    assert (callback["state"], callback["tries"], callback["finished_at"]) == ("waiting", 1, None)
    assert callback["due_at"] > callback["created_at"]
    part.turn(conn)
    assert len(here.calls) == 1, "it is not due yet"


def test_a_receiver_that_is_gone_is_given_up_at_once(conn: Conn, here: Receiver, part: CallbackDispatcher) -> None:
    here.usual = 410
    job = done(conn, hook(here))
    deliver(part, conn, lambda: over(conn, job))
    [callback] = listed(conn, job)
    assert (callback["state"], callback["error"]) == ("gave up", "the receiver answered 410 Gone")
    assert callback["due_at"] is None


def test_after_the_last_try_a_callback_is_given_up_with_the_reason(
    conn: Conn,
    here: Receiver,
    part: CallbackDispatcher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(callbacks, "MAX_TRIES", 3)
    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", TIMEOUT)
    here.usual = 503
    job = done(conn, hook(here, "?token=hunter2"))
    deliver(part, conn, lambda: over(conn, job))
    assert wait_until(lambda: not posting(part), TIMEOUT)
    [callback] = listed(conn, job)
    assert (callback["state"], callback["tries"], len(here.calls)) == ("gave up", 3, 3)
    assert callback["error"] == "the receiver answered 503 Service Unavailable"
    said = [entry.getMessage() for entry in caplog.records if entry.name == "callboard.callbacks"]
    assert said[-1].endswith("that was its last try (3)")
    assert len(said) <= 2, "a line now and then, not one a try"
    assert "hunter2" not in caplog.text


def test_tries_last_about_a_day() -> None:
    least = sum(delivery.retry_pause(tries) for tries in range(1, callbacks.MAX_TRIES))
    assert 16 * 3600 < least < 30 * 3600
    assert 0.5 <= delivery.retry_pause(1) <= 1.0
    assert 1_800 <= delivery.retry_pause(40) <= 3_600


def test_without_a_secret_the_error_says_so_and_it_is_tried_again(
    conn: Conn, here: Receiver, part: CallbackDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CALLBOARD_WEBHOOK_SECRET")
    job = done(conn, hook(here))
    deliver(part, conn, lambda: listed(conn, job)[0]["error"])
    assert "set CALLBOARD_WEBHOOK_SECRET" in listed(conn, job)[0]["error"]
    assert here.calls == []
    monkeypatch.setenv("CALLBOARD_WEBHOOK_SECRET", SECRET)
    deliver(part, conn, lambda: over(conn, job))
    assert len(here.calls) == 1


def test_receivers_that_do_not_answer_hold_up_no_other(
    conn: Conn, here: Receiver, part: CallbackDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FIRST_PAUSE_SECONDS", 2 * TIMEOUT)
    given_up = Signal()
    with receiver() as silent:
        silent.usual = lambda _: given_up.wait(TIMEOUT)
        stuck = [done(conn, hook(silent)) for _ in range(4)]
        good = [done(conn, hook(here)) for _ in range(20)]
        deliver(part, conn, lambda: all(over(conn, job) for job in good))
        assert len(here.calls) == 20
        assert wait_until(lambda: silent.calls[1:], TIMEOUT)
        assert len(silent.calls) == delivery.WEBHOOKS_PER_HOST, "and the rest has not begun"
        given_up.set()
        deliver(part, conn, lambda: all(listed(conn, job)[0]["error"] for job in stuck))
    assert {listed(conn, job)[0]["error"] for job in stuck} == {
        "the answer is not HTTP: Server disconnected without sending a response."
    }


def test_several_processes_share_what_is_due(conn: Conn, here: Receiver, database_url: str) -> None:
    jobs = [done(conn, hook(here), items=1) for _ in range(40)]
    parts = [CallbackDispatcher(Process(database_url)) for _ in range(3)]
    for one in parts:
        one.start()
    try:
        assert wait_until(lambda: all(over(conn, job) for job in jobs), TIMEOUT)
    finally:
        for one in parts:
            one.close(TIMEOUT)
            one.process.close()
    assert len(here.calls) == 40
    assert len({call.id for call in here.calls}) == 40


def test_a_webhook_that_a_dead_process_claimed_is_delivered_under_the_same_id(
    conn: Conn, here: Receiver, part: CallbackDispatcher
) -> None:
    job = done(conn, hook(here))
    [claimed] = callbacks.claim_callbacks(conn, webhooks=True, limit=9)
    part.turn(conn)
    assert here.calls == []
    conn.execute("UPDATE callboard.callbacks SET claimed_until = now()")
    deliver(part, conn, lambda: over(conn, job))
    assert [call.id for call in here.calls] == [claimed.id]
    # The one that was taken for dead comes back, and what it has to say is no news.
    assert not callbacks.postpone_callback(conn, claimed, "late", pause=0, last=True)
    assert not callbacks.mark_delivered(conn, claimed)
    assert [(c["state"], c["tries"]) for c in listed(conn, job)] == [("delivered", 2)]


def test_a_stopping_process_waits_for_a_receiver_until_its_deadline(
    conn: Conn, here: Receiver, part: CallbackDispatcher
) -> None:
    answering = Signal()
    here.usual = lambda _: answering.wait(TIMEOUT)
    job = done(conn, hook(here))
    part.start()
    assert wait_until(lambda: here.calls, TIMEOUT)
    part.close(0.3)
    assert posting(part)
    [callback] = listed(conn, job)
    assert (callback["state"], callback["tries"]) == ("waiting", 1)
    answering.set()
    part.close(TIMEOUT)
    assert not posting(part)


def test_a_stopping_process_begins_no_delivery(conn: Conn, here: Receiver, part: CallbackDispatcher) -> None:
    jobs = [done(conn, hook(here)), done(conn, ALL)]
    part.process.stopping = True
    part._periodic.run_step()
    assert [callback["tries"] for job in jobs for callback in listed(conn, job)] == [0, 0]


def test_an_answer_is_recorded_after_an_outage_of_the_database(
    conn: Conn, here: Receiver, part: CallbackDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, refused = [True], []
    settle = callbacks.mark_delivered

    def settled(*given: Any) -> bool:
        if away[0]:
            refused.append(given)
            raise psycopg.OperationalError("away")
        return settle(*given)

    monkeypatch.setattr(callbacks, "mark_delivered", settled)
    job = done(conn, hook(here))
    part.start()
    assert wait_until(lambda: refused, TIMEOUT)
    away[0] = False
    assert wait_until(lambda: over(conn, job), TIMEOUT)
    assert len(here.calls) == 1


def test_callbacks_of_a_deleted_job_are_given_up(conn: Conn, here: Receiver, part: CallbackDispatcher) -> None:
    gone, job = done(conn, hook(here)), done(conn, hook(here))
    silent = done(conn, ALL)
    for one in (gone, silent):  # and their callbacks, in a moment
        conn.execute("DELETE FROM callboard.jobs WHERE id = %s", (one,))
        conn.execute("DELETE FROM callboard.items WHERE job_id = %s", (one,))
    deliver(part, conn, lambda: over(conn, job))
    for one in (gone, silent):
        [callback] = listed(conn, one)
        assert (callback["state"], callback["error"]) == ("gave up", "its job was deleted")
    assert [call.told["job"] for call in here.calls] == [job]


# Messages -----------------------------------------------------------------------------------------------------------


def items_of(conn: Conn, actor: str) -> list[dict[str, Any]]:
    """The arguments of the calls in the actor's standing jobs."""
    jobs = conn.execute("SELECT id FROM callboard.jobs WHERE actor = %s AND standing_on IS NOT NULL", (actor,))
    return [item["args"][0] for (job,) in jobs.fetchall() for item in queries.run(conn, queries.items(job))[0]]


def test_a_message_becomes_an_item_of_its_actors_standing_job_once(conn: Conn, part: CallbackDispatcher) -> None:
    jobs = [done(conn, ALL, name=f"job {n}") for n in range(3)]
    part.turn(conn)
    told = items_of(conn, "tell")
    assert sorted(one["job"] for one in told) == jobs
    assert {one["id"] for one in told} == {listed(conn, job)[0]["id"] for job in jobs}
    assert {(one["state"], one["succeeded"]) for one in told} == {("completed", 2)}
    sent = claim_outbox(conn, 10)
    assert {(out.actor, out.queue, out.attempt, out.suspect) for out in sent} == {("tell", "mail", 1, False)}
    assert {out.message_id for out in sent} == {one["id"] for one in told}
    # Another process had it in hand, too: it comes to nothing.
    conn.execute("UPDATE callboard.callbacks SET claimed_until = NULL, due_at = now()")
    part.turn(conn)
    assert len(items_of(conn, "tell")) == 3


def test_a_message_that_is_sent_twice_is_stored_once(conn: Conn, part: CallbackDispatcher) -> None:
    done(conn, ALL)
    [claimed] = callbacks.claim_callbacks(conn, webhooks=False, limit=9)
    part._send(conn, claimed)
    part._send(conn, claimed)
    assert len(items_of(conn, "tell")) == 1


def test_a_message_that_a_dead_process_claimed_is_sent_after_seconds(conn: Conn, part: CallbackDispatcher) -> None:
    """Sending takes milliseconds, and a message that is sent twice is stored once; a webhook may take its time."""
    job = done(conn, targets(["tell", "https://a/"]))
    for webhooks in (True, False):
        assert len(callbacks.claim_callbacks(conn, webhooks=webhooks, limit=9)) == 1
    conn.execute("UPDATE callboard.callbacks SET claimed_until = claimed_until - interval '10 s'")
    part.turn(conn)
    assert {c["target"]: c["state"] for c in listed(conn, job)} == {"tell": "delivered", "https://a/": "waiting"}


def test_a_message_that_can_not_be_encoded_is_retried_and_leaves_nothing(
    conn: Conn, part: CallbackDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = done(conn, ALL)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the encoder of this app can't write that")

    monkeypatch.setattr(envelope, "encode_args", broken)
    part.turn(conn)
    [callback] = listed(conn, job)
    assert (callback["state"], callback["tries"]) == ("waiting", 1)
    assert callback["error"] == "RuntimeError: the encoder of this app can't write that"
    monkeypatch.undo()
    deliver(part, conn, lambda: over(conn, job))
    assert len(items_of(conn, "tell")) == 1


# All of it ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(
    postgres_url: str, template: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALLBOARD_WEBHOOK_SECRET", SECRET)
        patch.setenv("CALLBOARD_WEBHOOK_PRIVATE", "on")
        folder = tmp_path_factory.mktemp("callbacks")
        with running_pipeline(postgres_url, template, broker, ["work", "told", "slow"], folder) as made:
            yield made
            assert made.drift() == []


def told(pipeline: Pipeline, job: callboard.Job) -> list[dict[str, Any]]:
    """The calls about a job that the actor `told` returned as its results."""
    return [i["result"] for i in pipeline.sent_items("told", "succeeded") if i["result"]["job"] == job.id]


def test_actors_and_webhooks_are_called_when_a_job_completes(pipeline: Pipeline) -> None:
    with receiver() as there:
        job = pipeline.submit("work", {"number": 1}, {"number": 2, "fate": "fail"}, on_complete=["told", there.url])
        status = job.wait(TIMEOUT)
        assert wait_until(lambda: there.calls and told(pipeline, job), TIMEOUT)
        assert wait_until(lambda: all(c["state"] == "delivered" for c in job.callbacks()), TIMEOUT)
    ids = {callback["target"]: callback["id"] for callback in job.callbacks()}
    calls = [*told(pipeline, job), *(call.told for call in there.calls)]
    for one in (status, *calls):
        del one["updated_at"]  # its last message may be found confirmed after it has ended
    assert calls == [{**status, "id": ids[target], "job": job.id} for target in ("told", there.url)]
    assert verified(there.calls[0].headers, there.calls[0].body)
    assert len(pipeline.conn.execute("SELECT FROM runs WHERE what = %s", (f"told {ids['told']}",)).fetchall()) == 1


def test_a_callback_actor_that_fails_is_retried_as_any_message(pipeline: Pipeline) -> None:
    job = pipeline.submit("work", {"number": 1}, name="flaky", on_complete=pipeline.actor("told"))
    assert wait_until(lambda: told(pipeline, job), TIMEOUT)
    assert job.status()["state"] == "completed"
    assert [callback["state"] for callback in job.callbacks()] == ["delivered"]


def test_a_cancelled_a_failed_and_a_retried_job_call(pipeline: Pipeline) -> None:
    ends: dict[str, Any] = {"on_complete": "told", "on_fail": ["told"], "on_cancel": ["told"]}
    job = pipeline.submit("slow", *[{"number": n, "seconds": 0.2} for n in range(60)], **ends)
    job.cancel("wrong file")
    assert wait_until(lambda: told(pipeline, job), TIMEOUT)
    [call] = told(pipeline, job)
    assert (call["state"], call["reason"]) == ("cancelled", "wrong file")
    failing = pipeline.submit("work", *[{"number": n, "fate": "fail"} for n in range(40)], max_failures=1, **ends)
    assert wait_until(lambda: told(pipeline, failing), TIMEOUT)
    state = told(pipeline, failing)[0]["state"]
    assert state == failing.status()["state"] in ("failed", "completed")
    first = pipeline.submit("work", {"number": 1, "fate": "fail"}, **ends)
    assert wait_until(lambda: told(pipeline, first), TIMEOUT)
    first.retry()
    assert wait_until(lambda: len(told(pipeline, first)) == 2, TIMEOUT)
    assert len({call["id"] for call in told(pipeline, first)}) == 2
    assert len(first.callbacks()) == 2


def test_a_block_of_sends_calls_when_its_items_ended(pipeline: Pipeline) -> None:
    with callboard.job("in a block", on_complete="told") as job:
        pipeline.actor("work").send(1)
    assert wait_until(lambda: told(pipeline, job), TIMEOUT)


def test_a_target_that_can_not_be_called_is_refused_before_a_job_is_made(pipeline: Pipeline) -> None:
    count = pipeline.conn.execute("SELECT count(*) FROM callboard.jobs").fetchone()
    wrong: list[tuple[Any, type[Exception], str]] = [
        ("nobody", callboard.UnknownActor, "no actor 'nobody'"), (["told", "nobody"], callboard.UnknownActor, "nobody"),
        ("ftp://a/b", ValueError, "https://host:port/path"), ("https://anna:hunter2@a/", ValueError, "no user"),
        (5, ValueError, "on_fail takes actors"), ([None], ValueError, "on_fail takes actors"),
        ("", ValueError, "on_fail takes actors"), ({"url": "https://a/"}, ValueError, "on_fail takes actors"),
        ([f"https://a/{n}" for n in range(21)], ValueError, "on_fail has 21 callbacks, and 20 are allowed"),
    ]  # fmt: skip
    for given, error, says in wrong:
        with pytest.raises(error, match=says):
            pipeline.submit("work", {"number": 1}, on_fail=given)
        with pytest.raises(error, match=says), callboard.job("a block", on_fail=given):
            pass
    assert pipeline.conn.execute("SELECT count(*) FROM callboard.jobs").fetchone() == count


# Looked at ----------------------------------------------------------------------------------------------------------


def test_the_api_lists_callbacks(conn: Conn, here: Receiver, part: CallbackDispatcher, database_url: str) -> None:
    job = done(conn, targets(["tell", f"{here.url}?token=hunter2"]))
    other = done(conn, None)
    deliver(part, conn, lambda: over(conn, job))
    app = open_app(database_url)
    found, none, unknown = get(app, *(f"/api/jobs/{n}/callbacks" for n in (job, other, 5)))
    assert found.json() == {"callbacks": listed(conn, job), "next": None}
    names = {"id", "on", "target", "state", "tries", "error", "created_at", "due_at", "finished_at"}
    assert [set(one) for one in found.json()["callbacks"]] == [names, names]
    assert "hunter2" not in found.text
    assert none.json() == {"callbacks": [], "next": None}
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "there is no job 5")


def test_the_command_submits_with_callbacks(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in pipeline.environment.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "items.jsonl"
    file.write_text('{"number": 1}\n')
    several = ["--on-complete", "told", "--on-complete", "https://nowhere.invalid/?a=b", "--on-fail", "told"]
    assert main(["submit", "work", str(file), *several, "--on-cancel", "told"]) == 0
    job = callboard.get(int(capsys.readouterr().out))
    job.wait(TIMEOUT)
    assert [callback["target"] for callback in job.callbacks()] == ["told", "https://nowhere.invalid/?***"]
    for wrong, says, code in (("nobody", "no actor 'nobody'", 1), ("ftp://a", "https://host:port/path", 2)):
        assert main(["submit", "work", str(file), "--on-fail", wrong]) == code
        assert says in capsys.readouterr().err
