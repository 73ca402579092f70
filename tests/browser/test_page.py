"""The pages in a real browser: plain without JavaScript, live with it, and never running text that others wrote."""

import re
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from playwright.sync_api import Locator, Page, Route, expect
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Mount
from starlette.routing import Route as Path

from callboard import Identity
from callboard.commands.services.ports import free_ports
from callboard.sql.pool import Conn
from callboard.sql.rows import Failure, Running
from callboard.sql.writes import actions, callbacks, jobs, outcomes, stages, submission, tokens
from callboard.sql.writes.requests import Requester
from callboard.web import create_app
from callboard.web.pages import forms
from tests.support.jobs import (
    BAD,
    age,
    cancel,
    make_job,
    make_mixed_job,
    make_staged,
    make_worker,
    record,
    run,
    targets,
)
from tests.support.timer import Timer
from tests.support.webapp import SILENT, behind_proxy, open_app, served
from tests.support.workers import wait_until

#: The most seconds until a change is shown, as a median.
SHOWN_SECONDS = 1.5
#: The most milliseconds on a busy machine: until a change is shown, and until something that takes several tries.
SOON, LATER = 60_000, 120_000


@pytest.fixture(autouse=True)
def no_worker_left(conn: Conn) -> Iterator[None]:
    """The tests share a database: a worker of one must not run the jobs of another."""
    yield
    conn.execute("DELETE FROM callboard.workers")


def pill(page: Page) -> Locator:
    """The state of the page's job."""
    return page.locator("#head .pill")


def buttons(page: Page) -> Locator:
    """What the page offers to do to its job."""
    return page.get_by_role("group", name="Control").locator(":scope > form button").filter(visible=True)


def widths(page: Page) -> dict[str, float]:
    """How much of the bar each state has, in percent."""
    read = "parts => parts.map(part => [part.dataset.state, parseFloat(part.getAttribute('width'))])"
    found = dict(page.locator("#head .bar rect").evaluate_all(read))
    return {state: width for state, width in found.items() if width}


def test_the_page_of_a_job_moves_within_seconds_and_without_a_reload(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 10, name="Autumn ads")
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate("window.loaded = 'once'")
    expect(page.locator("[data-of=percent]")).to_have_text("0.0 %")
    bar = page.locator("#head").get_by_role("progressbar")
    took = []
    for done in range(5):
        record(conn, job, {"succeeded": [done]})
        timer = Timer()
        expect(bar).to_have_attribute("aria-valuenow", str((done + 1) * 10), timeout=SOON)
        took.append(timer.seconds)
    assert statistics.median(took) < SHOWN_SECONDS, took
    expect(page).to_have_title("50.0 % Autumn ads – Callboard")
    record(conn, job, {"failed": range(5, 10)})
    expect(pill(page)).to_have_text("completed", timeout=SOON)
    expect(page.locator("[data-of=percent]")).to_have_text("100 %")
    expect(page.locator("#head .legend")).to_contain_text("5 failed")
    expect(page.locator("#sentence")).to_contain_text("Completed", timeout=SOON)
    expect(page.locator("#errors li")).to_have_count(1, timeout=SOON)
    assert page.evaluate("window.loaded") == "once"


def test_every_page_is_whole_without_javascript(plain_page: Page, conn: Conn, address: str) -> None:
    job = make_mixed_job(conn, name="without scripts")
    plain_page.goto(f"{address}/?q=without")
    expect(plain_page.locator("#jobs li")).to_contain_text("30.0 % · 30 of 100 items 5 failed")
    plain_page.locator("#jobs .name").click()
    expect(plain_page.locator("#sentence")).to_have_text(re.compile(r"^Running, done at about .* UTC"))
    assert sum(widths(plain_page).values()) == pytest.approx(100)
    expect(plain_page.locator("#running li")).to_have_count(3)
    expect(plain_page.locator("#errors pre")).to_have_text(BAD.message)
    expect(plain_page.locator("#items tbody tr")).to_have_count(25)
    plain_page.get_by_role("link", name="Next").click()
    expect(plain_page.locator("#item-49")).to_contain_text("queued")
    plain_page.get_by_label("States of items").get_by_role("link", name="failed").click()
    expect(plain_page.locator("#items tbody tr")).to_have_count(5)
    expect(plain_page.locator("#item-20")).to_contain_text(f"ValueError: {BAD.message}")
    assert urlsplit(plain_page.url).path == f"/jobs/{job}"


def test_the_percent_that_is_read_out_is_the_one_that_is_shown(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 100)
    record(conn, job, {"succeeded": range(29)})  # 0.29 * 100 is less than 29, and 0.57 * 100 than 57
    page.clock.install()
    page.goto(f"{address}/jobs/{job}")
    bar = page.locator("#head").get_by_role("progressbar")
    assert bar.get_attribute("aria-valuenow") == "29"
    record(conn, job, {"succeeded": range(29, 57)})
    expect(bar).to_have_attribute("aria-valuenow", "57", timeout=SOON)


def test_a_job_without_items_is_done(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 0)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("[data-of=percent]")).to_have_text("100 %")
    assert widths(page) == {"succeeded": 100}


def test_the_page_shows_states_running_items_and_errors(page: Page, conn: Conn, address: str) -> None:
    job = make_mixed_job(conn)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#head .legend li:visible")).to_have_count(7)
    expect(page.locator("#running li")).to_have_count(3)
    expect(page.locator("#running li").first).to_contain_text("page 3")
    expect(page.locator("#errors li")).to_contain_text(re.compile(r"5 failed.*3 attempts retried", re.DOTALL))
    expect(page.locator("#errors pre")).to_have_text(BAD.message)
    page.locator("#head .legend").get_by_text("skipped").click()
    expect(page.locator("#items tbody tr")).to_have_count(5)
    expect(page.locator("#item-25")).to_contain_text("Skip: unchanged")


def test_a_running_item_shows_its_progress(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 3)
    run(conn, job, [0, 1], progress=(3.0, 10.0))
    run(conn, job, [2])
    page.goto(f"{address}/jobs/{job}")
    gauges = page.locator("#running .gauge")
    expect(gauges).to_have_text(["3 of 10", "3 of 10"])
    assert gauges.locator("progress").first.evaluate("bar => bar.position") == pytest.approx(0.3)
    run(conn, job, [0], progress=(12.3456789, None))
    expect(gauges.first).to_have_text("12.35 so far", timeout=SOON)
    expect(gauges.first.locator("progress")).to_have_count(0)


def test_limits_are_shown_with_who_changed_them(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 3)
    page.goto(f"{address}/jobs/{job}")
    expect(pill(page)).to_have_text("pending")
    expect(page.locator("#limits")).to_have_count(0)
    anna = Requester("cli", "anna@shop")
    actions.limit(conn, job, anna, {"concurrency": 5, "rate": "10/s"})
    expect(page.locator("#limits")).to_have_text("rate 10/s, concurrency 5", timeout=SOON)
    actions.limit(conn, job, anna, {"rate": None, "deadline": "2100-01-31T12:00:00Z"})
    left = re.compile(r"deadline 2100-01-31 \d\d:\d\d, concurrency 5")
    expect(page.locator("#limits")).to_have_text(left, timeout=SOON)
    rows = page.locator("#history li")
    changed = re.compile(r"limit: rate none, deadline 2100-01-31 \d\d:\d\d anna@shop, by cli")
    expect(rows.nth(0)).to_contain_text(changed, timeout=SOON)
    expect(rows.nth(1)).to_contain_text("limit: rate 10/s, concurrency 5 anna@shop, by cli")


def test_text_of_others_is_never_markup(page: Page, conn: Conn, address: str) -> None:
    evil = "</pre></textarea><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    job = make_job(conn, 3, name=evil, actor=evil, tenant=evil)
    run(conn, job, [1], step=evil)
    record(conn, job, {"failed": [0]}, failure=Failure("failed", evil, evil, evil, evil, 9))
    record(conn, job, {"succeeded": [2]}, result=f'"{evil}"'.replace('"d', '\\"d').replace("'\">", "'\\\">"))
    conn.execute(
        "UPDATE callboard.jobs SET reason = %s, step = %s, key = %s, created_by = %s,"
        " metadata = jsonb_build_object(%s::text, %s::text) WHERE id = %s",
        (evil, evil, evil, evil, evil, evil, job),
    )
    conn.execute("UPDATE callboard.items SET item_key = %s || item WHERE job_id = %s", (evil, job))
    actions.cancel(conn, job, Requester("cli", evil), reason=evil)
    page.goto(f"{address}/?q=%3Cscript")
    expect(page.locator("#jobs .name")).to_have_text(evil)
    page.goto(f"{address}/jobs/{job}")
    for place in ("#name", "#errors pre", "#running .what", "#history .aside"):
        expect(page.locator(place).first).to_contain_text(evil)
    expect(page.locator("#about")).to_contain_text(evil)
    assert page.locator("main img, main script:not(#data)").count() == 0
    expect(page).not_to_have_title("taken")


def test_a_hung_item_and_a_stalled_job_are_shown(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 3)
    age(conn, job, 42)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#sentence")).to_have_text("Stalled: no worker is alive")
    worker = make_worker(conn)
    run(conn, job, [1, 2], worker=worker)
    place = "shop/prices.py:88 in fetch"
    stack = f"{place}\n    connection.recv(1)"
    outcomes.report_running(conn, worker, [Running(job, n, 1, 1.0, None, None, place, stack) for n in (1, 2)])
    seen = rf"Hung: item 1 on worker {worker}, for \d+ s, at {place}, and 1 more item"
    expect(page.locator("#hung")).to_have_text(re.compile(seen), timeout=SOON)
    expect(page.locator("#sentence")).not_to_contain_text("Stalled")
    expect(page.locator("#running pre").first).to_have_text(stack, timeout=SOON)
    record(conn, job, {"succeeded": range(3)}, worker=worker)
    expect(page.locator("#hung")).to_have_count(0, timeout=SOON)


def test_the_list_moves_in_its_places_and_new_jobs_wait_behind_a_link(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 4, name="in the list")
    page.goto(address)
    row = page.locator(f"#job-{job}")
    card = row.element_handle()
    assert card is not None
    record(conn, job, {"succeeded": [0]})
    expect(row.locator(".share")).to_have_text("25.0 % · 1 of 4 items", timeout=SOON)
    expect(row.locator(".when")).to_have_text(re.compile("^since "))
    record(conn, job, {"succeeded": range(1, 4)})
    expect(row.locator(".when")).to_have_text(re.compile("^ended "), timeout=SOON)
    assert card.evaluate("card => card.isConnected")
    other = make_job(conn, 1, name="a newer one")
    expect(page.locator("#more")).to_have_text("1 new", timeout=SOON)
    expect(page.locator(f"#job-{other}")).to_have_count(0)
    page.locator("#more a").click()
    expect(page.locator("#jobs li").first).to_contain_text("a newer one")
    page.get_by_role("combobox").fill('"in the LIST"')
    page.keyboard.press("Enter")
    expect(page.locator("#jobs li")).to_have_count(1)
    page.locator("#jobs .name").click()
    expect(page.locator("#name")).to_have_text("in the list")


def test_a_job_with_stages_shows_and_links_each(page: Page, conn: Conn, address: str) -> None:
    parent, [first, second] = make_staged(conn)
    page.goto(address)
    expect(page.locator(f"#job-{parent} .share")).to_have_text("56.2 % · 11 of 18 items")
    page.locator(f"#job-{parent} .name").click()
    expect(page.locator("#stages li")).to_have_count(2)
    expect(page.locator("#stages li").first).to_contain_text("8 succeeded, 2 failed")
    expect(page.locator("#stages .bar").last).to_have_attribute("aria-valuenow", "12")
    run(conn, second, [1], step="adding")
    expect(page.locator("#running li")).to_contain_text("adding", timeout=SOON)
    expect(page.locator("#running a")).to_have_attribute("href", re.compile(rf"jobs/{second}/items/1$"))
    expect(page.get_by_role("link", name="Traceback")).to_have_attribute(
        "href", re.compile(rf"jobs/{first}/items/8#attempts$")
    )
    expect(page.locator("#errors li")).to_contain_text("in fetch")
    page.locator("#stages a").last.click()
    expect(page.locator("#name")).to_have_text("sum up")
    expect(buttons(page)).to_have_count(0)
    page.get_by_role("link", name=str(parent)).click()
    expect(page.locator("#name")).to_have_text("two")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#stages .pill").last).to_have_text("paused", timeout=SOON)


def test_a_stage_that_fails_to_be_made_shows_its_traceback_and_can_be_retried(
    page: Page, conn: Conn, address: str
) -> None:
    parent, _ = make_staged(conn, made=False)
    making = stages.claim_stage(conn, make_worker(conn), ["work"], [])
    assert making is not None
    stages.fail_stage(conn, making, "its items can't be made: KeyError", {"reason": "no", "traceback": "Traceback <b>"})
    page.goto(f"{address}/jobs/{parent}")
    expect(pill(page)).to_have_text("failed")
    expect(page.locator("#sentence")).to_contain_text("stage 'sum up': its items can't be made: KeyError")
    expect(page.locator("#history pre")).to_have_text("Traceback <b>")
    expect(page.locator("#stages li").last).to_contain_text("not made yet")
    expect(page.locator("[data-of=percent]")).to_have_text("50.0 %")
    assert widths(page) == {"succeeded": 40, "failed": 10}
    page.get_by_role("button", name="Retry 2 failed").click()
    expect(pill(page)).to_have_text("running", timeout=SOON)


def test_a_lost_connection_is_shown_until_it_is_back(page: Page, conn: Conn, shared_url: str) -> None:
    job = make_job(conn, 4)
    app = open_app(shared_url)
    (port,) = free_ports(1)  # none that a system gives to some outgoing connection meanwhile
    with served(app, port) as address:
        page.goto(f"{address}/jobs/{job}")
        expect(page.locator("#live")).to_have_text("live")
    expect(page.locator("#live")).to_have_text(re.compile(r"^reconnecting in \d s$"), timeout=LATER)
    record(conn, job, {"succeeded": [0]})
    with served(app, port):
        expect(page.locator("#live")).to_have_text("live", timeout=LATER)
        expect(page.locator("[data-of=percent]")).to_have_text("25.0 %", timeout=LATER)


def test_the_times_of_a_sentence_are_those_of_the_page(page: Page, conn: Conn, address: str) -> None:
    make_worker(conn)
    conn.execute("UPDATE callboard.workers SET beat_at = now() + interval '1 day'")
    job = make_job(conn, 2, name="at its time <b>", published=0)
    conn.execute("UPDATE callboard.jobs SET not_before = '2100-01-31 12:00Z' WHERE id = %s", (job,))
    said = re.compile(r"^\s*Stalled: waiting for its time at 2100-01-31 \d\d:\d\d\s*$")
    page.goto(f"{address}/?q=at+its+time")
    expect(page.locator(f"#job-{job} .wait")).to_have_text(said)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#sentence")).to_have_text(said)
    expect(page.locator("#sentence time")).to_have_attribute("datetime", "2100-01-31T12:00:00.000Z")


BREAKS_OFF = """
const whole = Response.prototype.text;
let left = 3;
Response.prototype.text = function () {
  if (!this.url.includes("part=") || !left) return whole.call(this);
  left -= 1;
  return Promise.reject(new DOMException("the answer broke off", "AbortError"));
};
"""


def test_a_page_goes_on_after_answers_that_break_off(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 4)
    page.add_init_script(BREAKS_OFF)
    page.goto(f"{address}/jobs/{job}")
    record(conn, job, {"failed": [0]})
    expect(page.locator("#errors")).to_contain_text(BAD.message, timeout=SOON)


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 404, "content_type": "text/plain", "body": "404 page not found"},  # while a web app is deployed anew
        {"status": 200, "content_type": "text/html", "body": "<p>Log in to this network"},
    ],
)
def test_an_answer_of_a_proxy_is_a_lost_connection(page: Page, conn: Conn, address: str, answer: Any) -> None:
    job = make_job(conn, 4)
    asked = list[Route]()

    def answers(route: Route) -> None:
        asked.append(route)
        route.continue_() if len(asked) > 2 else route.fulfill(**answer)

    page.route(f"**/api/v1/jobs/{job}/events", lambda route: route.fulfill(status=404))
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate("window.loaded = 'once'")
    page.route(f"**/api/v1/jobs/{job}", answers)
    expect(page.locator("#live")).to_have_text(re.compile(r"^reconnecting"), timeout=LATER)
    record(conn, job, {"succeeded": [0]})
    expect(page.locator("[data-of=percent]")).to_have_text("25.0 %", timeout=LATER)
    assert page.evaluate("window.loaded") == "once"


def test_a_page_whose_proxy_refuses_its_questions_is_not_loaded_again_and_again(
    page: Page, conn: Conn, address: str
) -> None:
    job = make_job(conn, 4)
    asked, loads = list[str](), list[str]()

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=403, content_type="text/html", body="<html>Forbidden</html>")

    def asked_again() -> bool:
        page.wait_for_timeout(100)  # which takes the requests
        return len(asked) >= 4

    page.on("load", lambda loaded: loads.append(loaded.url))
    page.route("**/api/**", refuse)
    began = time.monotonic()
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#live")).to_have_text(re.compile("^reconnecting"), timeout=LATER)
    assert wait_until(asked_again, 300)
    assert len(loads) <= 1 + (time.monotonic() - began) // 30


@pytest.mark.parametrize("hours", [-5, 5])
def test_spans_are_right_where_the_clock_of_the_browser_is_wrong(
    page: Page, conn: Conn, address: str, hours: int
) -> None:
    job = make_job(conn, 4)
    run(conn, job, [0], worker=make_worker(conn))
    conn.execute("UPDATE callboard.running SET started_at = now() - interval '26 h' WHERE job_id = %s", (job,))
    page.add_init_script(f"const right = Date.now; Date.now = () => right() + {hours} * 3600e3;")
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#live")).to_have_text("live")
    expect(page.locator("#running [data-since]")).to_have_text(re.compile("^1 d 2 h$"))


@pytest.mark.parametrize(("elsewhere", "pressed"), [(True, False), (False, False), (False, True)])
def test_a_page_whose_login_is_over_goes_to_the_login(
    page: Page, conn: Conn, shared_url: str, elsewhere: bool, pressed: bool
) -> None:
    """That of an app around it, which sends a browser away."""
    job, known = make_job(conn, 4), [Identity("anna")]
    asks = Starlette(routes=[Path("/in", lambda _: HTMLResponse("<form><input name=password></form>"))])
    with served(asks) as login:
        to = RedirectResponse(f"{login}/in" if elsewhere else "/in")
        own = create_app(url=shared_url, authenticate=lambda _: known[0] if known else to)
        with served(Starlette(routes=[*asks.routes, Mount("/board", own)])) as address:
            page.route("**/events", lambda route: route.fulfill(status=404))
            page.goto(f"{address}/board/jobs/{job}")
            expect(page.locator("#live")).to_have_text("live")
            if pressed:
                page.locator("#live").click()
            known.clear()
            if pressed:
                page.get_by_role("button", name="Cancel").click()
            page.wait_for_url("**/in", timeout=LATER)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_page_asks_where_its_stream_is_silent(page: Page, conn: Conn, address: str, at_once: bool) -> None:
    job = make_job(conn, 4)
    page.clock.install()
    page.add_init_script(f"{SILENT} window.silent = {str(at_once).lower()}")
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#live")).to_have_text("live")
    record(conn, job, {"succeeded": [0]})
    if not at_once:
        expect(page).to_have_title(re.compile(r"^25.0 %"), timeout=SOON)
        page.evaluate("window.silent = true")
        record(conn, job, {"succeeded": [1]})
    page.clock.fast_forward(6_000 if at_once else 41_000)
    expect(page).to_have_title(re.compile(r"^25.0 %" if at_once else r"^50.0 %"), timeout=SOON)


def test_the_updates_pause_and_go_on(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 4)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#live")).to_have_text("live")
    page.keyboard.press("p")
    expect(page.locator("#live")).to_have_text("paused")
    record(conn, job, {"succeeded": [0]})
    page.wait_for_timeout(1_500)
    expect(page.locator("[data-of=percent]")).to_have_text("0.0 %")
    page.locator("#live").click()
    expect(page.locator("[data-of=percent]")).to_have_text("25.0 %", timeout=SOON)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/jobs/5", "There is no job 5"), ("/jobs/5/cancel", "There is no job 5"), ("/jobs/x", "There is no job"),
        ("/nothing", "GET /nothing does not exist"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_a_page_that_says_so(page: Page, address: str, path: str, said: str) -> None:
    answer = page.goto(f"{address}{path}")
    assert answer is not None
    assert answer.status == 404
    expect(page.locator("#problem .detail")).to_contain_text(said)
    page.get_by_role("link", name="All jobs").click()
    expect(page.get_by_role("combobox")).to_be_visible()


@contextmanager
def mounted(app: Starlette, prefix: str) -> Iterator[str]:
    """Serve the app within one of Starlette, and that within one of FastAPI; yields the address without the prefix."""
    first, second = (f"/{part}" for part in prefix.strip("/").split("/", 1))
    outer = FastAPI()
    outer.mount(first, Starlette(routes=[Mount(second, app)]))
    with served(outer) as address:
        yield address


@pytest.mark.parametrize("serve", [mounted, behind_proxy])
def test_the_pages_work_under_a_prefix(serve: Any, page: Page, conn: Conn, shared_url: str) -> None:
    """Login, styles and scripts, forms, events, shares, and the way out; the prefix may be taken away by a proxy."""
    job = make_job(conn, 2, name="under a prefix")
    scopes = ["read", "control", "admin"]
    token, _ = tokens.create(conn, Requester("cli", "anna"), name="anna", scopes=scopes)
    refused = list[tuple[int, str]]()
    page.on("response", lambda answer: refused.append((answer.status, answer.url)) if answer.status >= 400 else None)
    with serve(create_app(url=shared_url), "/proxy/in/side") as address:
        page.goto(f"{address}/proxy/in/side{'' if serve is mounted else '/'}")
        page.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        page.locator(f"#job-{job} .name").click()
        expect(page.locator("#name")).to_have_text("under a prefix")
        assert re.search(r"/proxy/in/side/jobs/\d+$", page.url)
        page.route("**/api/v1/jobs/*", lambda route: route.abort())  # else it would poll where it has no events
        page.get_by_role("button", name="Pause").click()
        expect(pill(page)).to_have_text("paused", timeout=SOON)
        record(conn, job, {"succeeded": [0]})
        expect(page.locator("[data-of=percent]")).to_have_text("50.0 %", timeout=SOON)
        (session,) = page.context.cookies()
        assert session.get("path") == "/proxy/in/side"
        page.get_by_text("More", exact=True).click()
        page.get_by_role("button", name="Share").click()
        page.locator("#shared dd a").click()
        expect(page.locator("[data-of=percent]")).to_have_text("50.0 %", timeout=SOON)
        assert page.url.startswith(f"{address}/proxy/in/side/share/{job}?token=")
        api = httpx.get(f"{address}/proxy/in/side/api/v1/openapi.json", headers={"Authorization": f"Bearer {token}"})
        assert api.json()["servers"] == [{"url": "/proxy/in/side/api/v1"}]
        page.goto(f"{address}/proxy/in/side/")
        expect(page.locator("#live")).to_have_text("live")
        assert [url for _, url in refused if not url.endswith("/in/side")] == []
        # What the page asks for until it is gone may be refused, for the want of a login.
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()
        assert {status for status, _ in refused} <= {401}


def test_the_pages_fit_a_phone(page: Page, conn: Conn, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a_name_without_any_place_to_break_it_" * 4
    job = make_mixed_job(conn, name=name)
    over = make_job(conn, 1, name=name)
    cancel(conn, over)
    monkeypatch.setattr(forms, "DELETED_WITHOUT_NAME", 0)
    page.set_viewport_size({"width": 320, "height": 740})
    tokens.create(conn, Requester("cli", "anna"), name="somebody whose name is long")
    make_worker(conn)
    make_job(conn, 1, actor="an_actor_that_no_worker_has_whose_name_can_not_be_broken", published=0)
    paths = (f"jobs/{job}", f"jobs/{job}/items/20", f"jobs/{job}/cancel", f"jobs/{over}/delete", f"share/{job}")
    for path in ("/", f"/?q={name}", *(f"/{one}" for one in paths)):
        page.goto(f"{address}{path}")
        expect(page.locator("#main")).to_contain_text("a_name_without")
        if path == "/":
            expect(page.locator("#jobs")).to_contain_text("has the actor an_actor_that_no_worker_has")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, path
    actions.limit(conn, job, Requester("cli", "anna"), {"max_failures": "5% of 1000"})
    for width in (320, 1280):
        page.set_viewport_size({"width": width, "height": 740})
        page.goto(f"{address}/jobs/{job}")
        expect(page.locator(".facts")).to_contain_text("5 % of 1000 allowed")
        too_wide = "all => all.filter((one) => one.scrollWidth > one.clientWidth).length"
        assert page.locator(".facts > div").evaluate_all(too_wide) == 0
    page.set_viewport_size({"width": 320, "height": 740})
    for path in ("/workers", "/queues", "/tokens", "/docs", "/?q=odd:1"):
        page.goto(f"{address}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, path


def test_a_job_is_paused_resumed_cancelled_and_retried_by_its_buttons(page: Page, conn: Conn, address: str) -> None:
    job = make_mixed_job(conn)
    page.goto(f"{address}/jobs/{job}")
    expect(buttons(page)).to_have_text(["Pause", "Cancel", "Retry 5 failed"])
    buttons(page).get_by_text("Pause").click()
    expect(pill(page)).to_have_text("paused", timeout=SOON)
    expect(page.locator("#history li")).to_contain_text("pause 127.0.0.1, by http", timeout=SOON)
    buttons(page).get_by_text("Resume").click()
    expect(pill(page)).to_have_text("running", timeout=SOON)
    buttons(page).get_by_text("Retry").click()
    expect(page.locator("#head .legend").get_by_text("failed")).to_be_hidden(timeout=SOON)
    expect(page.locator("#history li").first).to_contain_text("retry: 5 items")
    buttons(page).get_by_text("Cancel").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Cancel mixed?")
    expect(dialog).to_contain_text("72 items that did not start")
    dialog.get_by_text("Leave it running").click()
    expect(dialog).to_be_hidden()
    expect(pill(page)).to_have_text("running")
    buttons(page).get_by_text("Cancel").click()
    dialog.get_by_label("Reason").fill("the wrong file")
    dialog.get_by_role("button", name="Cancel the job").click()
    expect(pill(page)).to_have_text("stopping", timeout=SOON)
    expect(page.locator("#sentence")).to_contain_text("Stopping, while 3 items still run: the wrong file")
    conn.execute("DELETE FROM callboard.running")
    assert wait_until(lambda: job in jobs.close_stopped(conn), 300)
    expect(buttons(page)).to_have_text(["Run 75 cancelled", "Delete"], timeout=SOON)
    buttons(page).get_by_text("Run").click()
    expect(pill(page)).to_have_text("running", timeout=SOON)


def test_every_button_works_without_javascript(plain_page: Page, conn: Conn, address: str) -> None:
    page, job = plain_page, make_mixed_job(conn)
    page.goto(f"{address}/jobs/{job}")
    for name, state in (("Pause", "paused"), ("Resume", "running"), ("Retry 5 failed", "running")):
        buttons(page).get_by_text(name).click()
        expect(pill(page)).to_have_text(state)
        assert page.url == f"{address}/jobs/{job}"
    buttons(page).get_by_text("Cancel").click()
    expect(page.get_by_role("heading")).to_have_text("Cancel mixed?")
    page.get_by_text("Leave it running").click()
    expect(pill(page)).to_have_text("running")
    buttons(page).get_by_text("Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(pill(page)).to_have_text("stopping")  # an item still runs
    conn.execute("DELETE FROM callboard.running WHERE job_id = %s", (job,))
    assert wait_until(lambda: job in jobs.close_stopped(conn), 300)
    page.reload()
    expect(pill(page)).to_have_text("cancelled")
    buttons(page).get_by_text("Delete").click()
    expect(page.get_by_text("Its 100 items, with results, errors and history, will be lost.")).to_be_visible()
    page.get_by_role("button", name="Delete the job").click()
    expect(page.get_by_role("combobox")).to_be_visible()
    expect(page.locator(f"#job-{job}")).to_have_count(0)


def test_the_keyboard_focus_moves_to_the_next_button(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 2)
    page.goto(f"{address}/jobs/{job}")
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Resume")).to_be_focused(timeout=SOON)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Pause")).to_be_focused(timeout=SOON)
    page.keyboard.press("Tab")
    run(conn, job, [0])
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").focus()
    page.keyboard.press("Enter")
    expect(pill(page)).to_have_text("stopping", timeout=SOON)
    expect(page.locator("#name")).to_be_focused(timeout=SOON)


#: Numbers the links, buttons and fields that are to be seen, notes which of them get the focus, and returns how many
#: there are.
NUMBER_CONTROLS = """() => {
    document.querySelectorAll("details").forEach((one) => { one.open = true; });
    const all = [...document.querySelectorAll("a[href], button, input, select, textarea, summary")];
    const seen = all.filter((one) => one.checkVisibility() && !one.disabled && one.type !== "hidden");
    seen.forEach((one, place) => { one.dataset.place = place; });
    window.reached = new Set();
    document.addEventListener("focusin", (event) => window.reached.add(event.target.dataset.place));
    return seen.length;
}"""


def test_the_tab_key_reaches_every_control(page: Page, conn: Conn, address: str) -> None:
    make_worker(conn)
    job = make_mixed_job(conn)
    of_job = ("", "/items/20", "/cancel")
    for path in ("/", *(f"/jobs/{job}{part}" for part in of_job), "/workers", "/queues", "/tokens", "/login"):
        page.goto(f"{address}{path}")
        page.keyboard.press("p")
        count = page.evaluate(NUMBER_CONTROLS)
        for _ in range(count + 5):
            page.keyboard.press("Tab")
        reached = set(page.evaluate("[...window.reached]"))
        assert reached - {None} == {str(place) for place in range(count)}, path


def test_the_rows_are_walked_by_keys(page: Page, conn: Conn, address: str) -> None:
    older, newer = (make_job(conn, 1, name=f"walked {n}") for n in range(2))
    page.goto(f"{address}/?q=walked")
    expect(page.locator("#live")).to_have_text("live")
    page.keyboard.press("/")
    expect(page.get_by_role("combobox")).to_be_focused()
    page.keyboard.press("j")
    expect(page.get_by_role("combobox")).to_have_value("j")
    page.locator("h1").click()
    page.keyboard.press("j")
    expect(page.locator(f"#job-{newer} .name")).to_be_focused()
    page.keyboard.press("j")
    expect(page.locator(f"#job-{older} .name")).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text("walked 1")
    expect(page.locator("#live")).to_have_text("live")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("next and previous row")
    page.keyboard.press("Escape")

    def goes_to_the_list() -> bool:
        page.keyboard.press("g")
        page.keyboard.press("j")  # within a second
        return page.get_by_role("combobox").is_visible()

    assert wait_until(goes_to_the_list, 300)


COUNTS_FORMATTERS = """
window.formatters = 0;
for (const [owner, name] of [[Intl, "DateTimeFormat"], [Date.prototype, "toLocaleString"]]) {
  const whole = owner[name];
  owner[name] = function (...given) {
    window.formatters += 1;
    return new.target ? new whole(...given) : whole.apply(this, given);
  };
}
"""


def test_focus_selection_and_times_survive_an_update(page: Page, conn: Conn, address: str) -> None:
    job = make_mixed_job(conn)
    page.add_init_script(COUNTS_FORMATTERS)
    page.goto(f"{address}/jobs/{job}")
    link = page.locator("#errors a").last
    link.focus()
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#errors pre'))")
    record(conn, job, {"failed": [43]})
    expect(page.locator("#errors .count")).to_have_text("6 failed", timeout=SOON)
    expect(link).to_be_focused()
    assert page.evaluate("getSelection().toString()") == BAD.message
    expect(page.locator("#errors time").first).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    # One for the zone of the browser and one for all times, told each second: to make them took long.
    assert page.evaluate("formatters") == 2


def test_an_action_is_shown_though_an_older_read_was_under_way(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 2)
    held = list[Route]()
    page.route(f"**/api/v1/jobs/{job}/events", lambda route: route.fulfill(status=404))
    page.route(f"**/api/v1/jobs/{job}", lambda route: route.continue_() if held else held.append(route))
    page.goto(f"{address}/jobs/{job}")
    while not held:
        page.wait_for_timeout(20)
    answer = held[0].fetch()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#sentence")).to_contain_text("Paused", timeout=SOON)
    held[0].fulfill(response=answer)
    page.wait_for_timeout(100)
    expect(pill(page)).to_have_text("paused")


def test_an_event_that_was_read_before_the_page_is_not_shown(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 10)
    event = f"event: job\ndata: {httpx.get(f'{address}/api/v1/jobs/{job}').text}\n\n"
    record(conn, job, {"succeeded": range(5)})
    held = list[Route]()
    page.route(f"**/jobs/{job}/events", lambda route: route.fulfill(content_type="text/event-stream", body=event))
    page.route(f"**/api/v1/jobs/{job}", lambda route: route.continue_() if held else held.append(route))
    page.goto(f"{address}/jobs/{job}")
    while not held:  # it asks when the stream has ended
        page.wait_for_timeout(20)
    assert page.locator("#head").get_by_role("progressbar").get_attribute("aria-valuenow") == "50"
    held[0].continue_()


def test_a_page_goes_on_after_the_clock_of_the_database_was_set_back(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 10)
    conn.execute("UPDATE callboard.jobs SET updated_at = updated_at + interval '1 h' WHERE id = %s", (job,))
    page.clock.install()
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#live")).to_have_text("live")
    page.clock.fast_forward(31_000)
    conn.execute("UPDATE callboard.jobs SET updated_at = updated_at - interval '1 h' WHERE id = %s", (job,))
    record(conn, job, {"succeeded": range(5)})
    bar = page.locator("#head").get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuenow", "50", timeout=SOON)


def test_a_job_that_is_deleted_meanwhile_is_hidden(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 3)
    page.goto(f"{address}/jobs/{job}")
    record(conn, job, {"succeeded": [0, 1]})
    expect(page.locator("[data-of=percent]")).to_have_text("66.6 %", timeout=SOON)
    record(conn, job, {"succeeded": [2]})
    actions.delete(conn, job, Requester("python", "anna"))
    expect(page.locator("#problem .detail")).to_have_text(f"There is no job {job}", timeout=SOON)


def test_callbacks_are_shown_without_secrets(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 1, targets=targets(["tell", "https://shop.example/<b>?key=hunter2"]))
    page.goto(f"{address}/jobs/{job}")
    expect(pill(page)).to_have_text("pending")
    expect(page.locator("#callbacks")).to_be_hidden()
    record(conn, job, {"succeeded": [0]})
    rows = page.locator("#callbacks li")
    expect(rows).to_have_count(2, timeout=SOON)
    expect(rows.nth(0)).to_contain_text("tell when it was completed waiting, due")
    expect(rows.nth(1)).to_contain_text("https://shop.example/<b>?*** when it was completed waiting, due")
    [webhook] = callbacks.claim_callbacks(conn, webhooks=True, limit=1)
    callbacks.postpone_callback(conn, webhook, "the receiver answered 503", pause=60, last=False)
    [message] = callbacks.claim_callbacks(conn, webhooks=False, limit=1)
    callbacks.mark_delivered(conn, message)
    expect(rows.nth(0)).to_contain_text("delivered", timeout=LATER)
    expect(rows.nth(1).locator("pre")).to_have_text("the receiver answered 503")
    assert "hunter2" not in page.content()


# The answer to an action waits for `goOn()`, so that the page asks for its job meanwhile.
GONE_FIRST = """
  const ask = window.fetch;
  window.fetch = async (url, options) => {
    const answer = await ask(url, options);
    const said = document.documentElement.dataset;
    if (answer.status === 404) said.gone = "";
    if (options?.method === "POST" && answer.redirected) {
      said.answered = "";
      await new Promise((resolve) => { window.goOn = resolve; });
    }
    return answer;
  };
"""


def test_only_the_name_deletes_a_large_job(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 10_001, name="large  of\ntoday ")  # which a page shows with one blank for each space
    cancel(conn, job)
    page.add_init_script(GONE_FIRST)
    page.goto(f"{address}/jobs/{job}")
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Its 10,001 items")
    dialog.get_by_label("to confirm").fill("large")
    dialog.get_by_role("button", name="Delete the job").click()
    expect(page.get_by_role("alert")).to_contain_text("nothing was deleted", timeout=SOON)
    page.get_by_role("button", name="Delete").click()
    dialog.get_by_label("to confirm").fill("large of today")
    dialog.get_by_role("button", name="Delete the job").click()
    expect(page.locator("html[data-answered][data-gone]")).to_be_attached(timeout=SOON)
    page.evaluate("goOn()")
    expect(page.get_by_role("combobox")).to_be_visible(timeout=SOON)


def test_a_job_that_is_open_for_more_items_is_sealed_while_it_is_paused(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 1, sealed=False)
    make_worker(conn)
    record(conn, job, {"succeeded": [0]})
    actions.pause(conn, job, Requester("python", "anna"))
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#live")).to_have_text("live")
    expect(page.get_by_role("button", name="Seal")).to_have_count(0)
    submission.open_job(conn, job)  # its submission is done
    page.get_by_role("button", name="Seal").click(timeout=SOON)
    expect(pill(page)).to_have_text("completed", timeout=SOON)
    expect(page.get_by_role("button", name="Seal")).to_have_count(0, timeout=SOON)


def test_a_refused_action_is_shown(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 2)
    page.goto(f"{address}/jobs/{job}")
    page.route("**/pause", lambda route: route.fulfill(status=422, json={"detail": [{"msg": "of a proxy"}]}))
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("alert")).to_have_text("the server gave an unexpected answer", timeout=SOON)
    page.unroute("**/pause")

    def too_late(route: Route) -> None:
        """The job is cancelled when the button, which goes with that, was clicked."""
        cancel(conn, job)
        route.continue_(url=route.request.url.replace("pause", "resume"))

    page.route("**/pause", too_late)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("alert")).to_contain_text(f"job {job} is cancelled", timeout=SOON)
