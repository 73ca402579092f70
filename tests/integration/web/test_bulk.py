"""What an action would concern, and actions on many jobs, over HTTP on a real database."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from callboard import Identity
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.writes import actions
from callboard.sql.writes.requests import Requester
from callboard.web import bulk, create_app
from tests.support.jobs import cancel, make_job, make_mixed_job, make_staged, record, status
from tests.support.webapp import served

ANNA = Requester("python", "anna")


@pytest.fixture
def http(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client of the API. A request works until all is done."""
    monkeypatch.setattr(bulk, "WORK_SECONDS", 300.0)
    with (
        served(create_app(url=database_url, open_to_everyone=True)) as address,
        httpx.Client(base_url=f"{address}/api/v1") as client,
    ):
        yield client


def settled(conn: Conn, job: int) -> dict[str, Any]:
    """A job and its stages without what moves with the clock: rate, estimate of the end, reason of a standstill."""
    moving = dict.fromkeys(("rate", "eta", "stalled", "stalled_until"))
    found = status(conn, job)
    return {**found, **moving, "stages": [{**stage, **moving} for stage in found["stages"]]}


def test_a_dry_run_says_how_many_items_it_would_concern_and_changes_nothing(conn: Conn, http: httpx.Client) -> None:
    job, over = make_mixed_job(conn), make_mixed_job(conn)
    cancel(conn, over)
    parent, _ = make_staged(conn)
    [group] = queries.run(conn, queries.errors(job))
    before = [settled(conn, one) for one in (job, over, parent)]
    for method, path, body, items in (
        ("POST", f"{job}/cancel", None, 20 + 44 + 3),
        ("POST", f"{job}/cancel", {"reason": "x"}, 67),
        ("POST", f"{job}/retry", None, 5),
        ("POST", f"{job}/retry", {"states": ["failed", "skipped"]}, 10),
        ("POST", f"{job}/retry", {"items": [19, 20, 21, 25]}, 3),
        ("POST", f"{job}/retry", {"error": group["id"]}, 5),
        ("POST", f"{job}/retry", {"error": "ValueError", "items": [20, 25, 90]}, 1),
        ("POST", f"{job}/retry", {"error": "KeyError"}, 0),
        ("POST", f"{over}/retry", {"states": ["cancelled"]}, 70),
        ("POST", f"{over}/retry", {"states": ["cancelled"], "items": [0, 30, 40, 90]}, 3),
        ("POST", f"{parent}/retry", None, 2),
        ("POST", f"{parent}/cancel", None, 7),
        ("DELETE", f"{over}", None, 100),
    ):
        answer = http.request(method, f"/jobs/{path}?dry_run=true", json=body)
        assert (answer.status_code, answer.json()) == (200, {"items": items}), (method, path, body)
    assert [settled(conn, one) for one in (job, over, parent)] == before
    assert http.post(f"/jobs/{job}/retry", json={"states": ["failed", "skipped"]}).json()["failed"] == 0
    assert queries.run(conn, queries.actions(job))[0][0]["detail"]["count"] == 10


def test_a_dry_run_refuses_what_the_action_refuses(conn: Conn, http: httpx.Client) -> None:
    job, done = make_job(conn, 3), make_job(conn, 1)
    record(conn, done, {"succeeded": [0]})
    stopping = make_mixed_job(conn)
    actions.cancel(conn, stopping, ANNA)
    parent, (stage, _) = make_staged(conn)
    for method, path, body in (
        ("POST", f"{done}/cancel", None), ("POST", f"{stage}/cancel", None), ("POST", f"{stopping}/retry", None),
        ("DELETE", f"{job}", None), ("DELETE", f"{stage}", None), ("POST", f"{parent}/retry", {"items": [1]}),
        ("POST", "5/cancel", None), ("POST", f"{job}/retry", {"items": [0, 100]}),
        ("POST", f"{job}/retry", {"states": ["succeeded"]}),
    ):  # fmt: skip
        tried, real = (http.request(method, f"/jobs/{path}{more}", json=body) for more in ("?dry_run=true", ""))
        assert tried.status_code >= 400
        assert (tried.status_code, tried.json()["detail"]) == (real.status_code, real.json()["detail"])
    assert http.post(f"/jobs/{job}/cancel?dry_run=perhaps").json()["detail"] == "dry_run must be true or false"


def done(answer: httpx.Response) -> list[int | None]:
    """How many jobs and items it was done to, and how many jobs refused."""
    body = answer.json()
    assert answer.status_code == 200, answer.text
    return [body["jobs"], body["items"], body["refused"], body["next"]]


def test_an_action_on_the_jobs_of_a_filter(conn: Conn, http: httpx.Client) -> None:
    mine = [make_mixed_job(conn, name="mine") for _ in range(3)]
    other = make_mixed_job(conn, name="other")
    over = make_job(conn, 1, name="mine")
    record(conn, over, {"failed": [0]})

    def act(action: str, **more: Any) -> list[int | None]:
        return done(http.post("/jobs/actions", json={"action": action, "filter": {"q": "mine"}, **more}))

    untouched = settled(conn, other)
    assert act("pause", dry_run=True) == [3, 3 * 67, 1, None]
    assert status(conn, mine[0])["state"] == "running"
    assert act("pause") == [3, 3 * 67, 1, None]
    assert [status(conn, one)["state"] for one in mine] == ["paused"] * 3
    assert act("resume") == [3, 3 * 67, 1, None]
    assert act("retry", dry_run=True) == [4, 3 * 5 + 1, 0, None]
    assert act("retry", states=["skipped", "failed"]) == [4, 3 * 10 + 1, 0, None]
    assert act("cancel", reason="wrong file", filter={"q": "mine", "state": ["running"]})[:3:2] == [4, 0]
    assert {status(conn, one)["reason"] for one in (*mine, over)} == {"wrong file"}
    gone = [make_job(conn, 2, name="mine, too") for _ in range(2)]
    record(conn, gone[0], {"succeeded": [0, 1]})
    assert act("delete", filter={"name": "mine, too", "metadata": {"a": "1"}}) == [1, 2, 1, None]
    assert queries.run(conn, queries.job(gone[0])) is None
    assert settled(conn, other) == untouched
    assert queries.run(conn, queries.actions(mine[0]))[0][0]["via"] == "http"


def test_an_action_on_named_jobs_says_which_refused_and_why(conn: Conn, http: httpx.Client) -> None:
    one, two, over = (make_job(conn, 2) for _ in range(3))
    record(conn, over, {"succeeded": [0, 1]})
    answer = http.post("/jobs/actions", json={"action": "pause", "ids": [two, one, 5, over, one]})
    assert done(answer) == [2, 4, 2, None]
    assert [refusal["job"] for refusal in answer.json()["refusals"]] == [over, 5]
    assert answer.json()["refusals"][0]["detail"].endswith("completed: there is nothing left to pause")
    assert answer.json()["refusals"][1]["detail"] == "there is no job 5"


@pytest.mark.parametrize("by", ["filter", "ids"])
def test_a_request_works_for_a_while_and_another_goes_on(
    by: str, conn: Conn, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "WORK_SECONDS", 0.0)
    monkeypatch.setattr(bulk, "PAGE_JOBS", 2)
    jobs = [make_job(conn, 1) for _ in range(4)]
    body: dict[str, Any] = {"action": "pause", by: jobs if by == "ids" else {"state": ["pending", "running", "paused"]}}
    for left in (3, 2, 1, 0):
        answer = http.post("/jobs/actions", json=body)
        assert done(answer)[:3] == [1, 1, 0]
        assert [status(conn, one)["state"] for one in jobs].count("paused") == 4 - left
        body["after"] = answer.json()["next"]
    assert body["after"] is None


def test_a_tenant_acts_on_its_own_jobs_only(conn: Conn, database_url: str) -> None:
    mine, other = make_job(conn, 1, tenant="mine"), make_job(conn, 1, tenant="other")
    app = create_app(url=database_url, authenticate=lambda _: Identity("anna", tenant="mine"))
    with served(app) as address, httpx.Client(base_url=f"{address}/api") as client:
        named = client.post("/jobs/actions", json={"action": "pause", "ids": [mine, other]})
        assert (done(named), named.json()["refusals"][0]["detail"]) == ([1, 1, 1, None], f"there is no job {other}")
        for wanted in ({"q": "tenant:other"}, {"tenant": "other"}):
            assert done(client.post("/jobs/actions", json={"action": "pause", "filter": wanted})) == [0, 0, 0, None]
        answer = client.post("/jobs/actions", json={"action": "cancel", "filter": {"state": ["pending", "paused"]}})
        assert done(answer) == [1, 1, 0, None]
    assert status(conn, other)["state"] != "paused"


def test_what_makes_no_sense_is_done_to_no_job(conn: Conn, http: httpx.Client) -> None:
    job = make_job(conn, 1)
    refused: list[tuple[dict[str, Any], int, str]] = [
        ({"action": "pause", "filter": {}}, 400, "the filter is empty"),
        ({"action": "pause", "filter": {"q": "  "}}, 400, "the filter is empty"),
        ({"action": "pause"}, 400, "give either filter or ids"),
        ({"action": "pause", "ids": [1], "filter": {"q": "x"}}, 400, "give either filter or ids"),
        ({"action": "pause", "ids": []}, 422, "ids"),
        ({"action": "pause", "ids": [-1]}, 422, "ids"),
        ({"action": "explode", "ids": [1]}, 422, "action must be one of cancel, delete, pause, resume, retry"),
        ({"action": "pause", "filter": {"state": ["odd"]}}, 422, "filter.state"),
        ({"action": "pause", "filter": {"q": "odd:1"}}, 400, "q is invalid: odd:1 is no word"),
        ({"action": "pause", "filter": {"name": "a\x00"}}, 400, "must not contain a NUL character"),
        ({"action": "pause", "filter": {"limit": 5}}, 422, "filter.limit"),
        ({"action": "pause", "ids": [1], "after": "items-1"}, 400, "after must be"),
        (
            {"action": "retry", "ids": [1], "states": ["succeeded"]},
            422,
            "states must be some of failed, skipped, cancelled, not 'succeeded'",
        ),
        ({"action": "cancel", "ids": [1], "reason": "x" * 501}, 422, "reason must be a text"),
    ]
    for body, code, why in refused:
        answer = http.post("/jobs/actions", json=body)
        assert (answer.status_code, why in answer.json()["detail"]) == (code, True), (body, answer.text)
        assert queries.run(conn, queries.actions(job))[0] == [], body
    for ids in ([-1], [2**63], [1] * 1_001):
        page = http.post(f"{http.base_url.copy_with(path='/jobs/actions')}", data={"what": "pause", "ids": ids})
        assert (page.status_code, "ids" in page.json()["detail"]) == (422, True), ids[:1]
