"""/metrics: what it tells is what the rows say, and its counters never fall."""

from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from callboard import Identity
from callboard.sql.pool import Conn
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import actions, retention, retry_action
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from callboard.web import create_app
from tests.support.jobs import MIXED, cancel, make_job, make_mixed_job, make_staged, record
from tests.support.webapp import get

BY = Requester("python", "anna")


def read(app: Starlette) -> dict[tuple[str, ...], float]:
    """The samples by name and values of labels."""
    (answer,) = get(app, "/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {
        (one.name.removeprefix("callboard_"), *one.labels.values()): one.value
        for family in families
        for one in family.samples
    }


def test_metrics_tell_what_the_rows_say(conn: Conn, app: Starlette) -> None:
    assert read(app)["jobs", "running"] == 0
    make_mixed_job(conn)
    found = read(app)
    for name, states in (("items_open", list(MIXED)[:4]), ("items_ended_total", list(MIXED)[4:7])):
        for state in states:
            assert found[name, "work", "default", state] == MIXED[state]
    assert found["item_retries_total", "work", "default"] == 3
    assert (found["jobs", "running"], found["workers",], found["worker_threads",]) == (1, 1, 8)
    assert 0 <= found["worker_heartbeat_age_seconds",] < 60
    assert found["oldest_pending_job_seconds",] == 0


def test_a_job_that_may_start_and_does_not_ages(conn: Conn, app: Starlette) -> None:
    job = make_job(conn, 3, published=0)
    conn.execute("UPDATE callboard.jobs SET created_at = now() - interval '1 hour' WHERE id = %s", (job,))
    assert 3600 <= read(app)["oldest_pending_job_seconds",] < 3700
    conn.execute("UPDATE callboard.jobs SET not_before = now() + interval '1 hour' WHERE id = %s", (job,))
    assert read(app)["oldest_pending_job_seconds",] == 0


def test_counters_never_fall(conn: Conn, app: Starlette) -> None:
    """A retry takes from the counters of a job, and a deletion takes the job."""
    job, other = make_job(conn, 10), make_job(conn, 2, actor="other")
    record(conn, job, {"succeeded": range(6), "failed": range(6, 10)})
    record(conn, other, {"succeeded": range(2)})
    parent, stages = make_staged(conn)
    name = "items_ended_total"
    before = read(app)
    assert before[name, "work", "default", "failed"] == 6
    assert retry_action.retry(conn, job, BY, RetrySelection()) == 4
    assert counters(read(app)) == counters(before) | {("item_retries_total", "work", "default"): 4}
    record(conn, job, {"failed": range(6, 10)}, attempt=2)
    after = read(app)
    assert after[name, "work", "default", "failed"] == 10
    cancel(conn, parent)
    for stage in stages:
        cancel(conn, stage)
    retention.mark_deleted(conn, [job, parent])
    actions.delete(conn, other, BY)
    for one in retention.deleted_jobs(conn):
        assert list(retention.delete_rows(conn, one))
    assert counters(read(app)) == counters(after)
    retention.delete_old_rows(conn, None)
    assert counters(read(app)) == counters(after)
    assert not any(read(app)["jobs", state] for state in JOB_FINAL)
    merged = "SELECT count(*) = count(DISTINCT (actor, queue, state)) FROM callboard.totals"
    assert conn.execute(merged).fetchone() == (True,)
    record(conn, make_job(conn, 1), {"succeeded": [0]})
    assert read(app)[name, "work", "default", "succeeded"] == after[name, "work", "default", "succeeded"] + 1


def counters(found: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    return {key: value for key, value in found.items() if key[0].endswith("_total") and value}


def test_metrics_are_of_all_tenants(database_url: str) -> None:
    app = create_app(url=database_url, authenticate=lambda _: Identity("anna", tenant="acme"))
    assert get(app, "/metrics")[0].status_code == 403
    assert get(create_app(url=database_url), "/metrics")[0].status_code == 401
