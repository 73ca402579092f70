"""The pages in a real browser: they follow a job live, show a lost connection, and never run text from actors."""

import re
import statistics
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Dialog, Page, Route, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from callboard.sql.callback_targets import Message, Targets, Webhook
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import Failure, HangSample
from callboard.sql.writes import actions, callbacks, jobs, outcomes, stages, workers
from callboard.sql.writes.requests import Requester
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
)
from tests.support.webapp import open_app, served
from tests.support.workers import wait_until

#: The most seconds until a change is shown, as a median.
SHOWN_SECONDS = 1.5
#: The most milliseconds on a busy machine: until a change is shown, and until something that takes several tries.
SOON, LATER = 15_000, 30_000


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    """A connection to this test's database."""
    with connect(database_url) as connection:
        yield connection


@pytest.fixture
def address(database_url: str) -> Iterator[str]:
    """Where the app is."""
    with served(open_app(database_url)) as url:
        yield url


def test_the_page_of_a_job_shows_changes_within_seconds(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 10, name="Autumn ads")
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#percent")).to_have_text("0.0 %")
    bar = page.get_by_role("progressbar")
    took = []
    for done in range(5):
        record(conn, job, {"succeeded": [done]})
        began = time.monotonic()
        expect(bar).to_have_attribute("aria-valuenow", str((done + 1) * 10), timeout=SOON)
        took.append(time.monotonic() - began)
    assert statistics.median(took) < SHOWN_SECONDS, took
    record(conn, job, {"failed": range(5, 10)})
    expect(page.locator("#state")).to_have_text("completed", timeout=SOON)
    expect(page.locator("#state")).to_have_attribute("aria-live", "polite")
    expect(page.locator("#percent")).to_have_text("100 %")
    expect(page.locator("#legend")).to_contain_text("5 succeeded".replace(" ", ""))


def widths(page: Page) -> dict[str, str]:
    """How much of the bar each state has."""
    read = "parts => parts.map(part => [part.dataset.state, part.style.width])"
    return dict(page.locator("#bar > i:visible").evaluate_all(read))


def test_a_job_without_items_is_done(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 0)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#percent")).to_have_text("100 %")
    assert widths(page) == {"succeeded": "100%"}


def test_the_page_shows_states_running_items_and_errors(page: Page, conn: Conn, address: str) -> None:
    job = make_mixed_job(conn)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#legend li")).to_have_count(7)
    assert sum(float(width.rstrip("%")) for width in widths(page).values()) == pytest.approx(100)
    expect(page.locator("#running li")).to_have_count(3)
    expect(page.locator("#running li").first).to_contain_text("page 3")
    expect(page.locator("#errors li")).to_contain_text(re.compile(r"^5 failed.*3 attempts retried"))
    expect(page.locator("#errors pre")).to_have_text(BAD.message)


def test_a_running_item_shows_its_progress(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 3)
    run(conn, job, [0, 1], progress=(3.0, 10.0))
    run(conn, job, [2])
    page.goto(f"{address}/jobs/{job}")
    gauges = page.locator("#running .gauge")
    expect(gauges.locator("visible=true")).to_have_text(["3 of 10", "3 of 10"])
    assert gauges.locator("progress").first.evaluate("bar => bar.position") == pytest.approx(0.3)
    run(conn, job, [0], progress=(12.0, None))
    expect(gauges.first).to_have_text("12 so far", timeout=SOON)
    expect(gauges.first.locator("progress")).to_be_hidden()


def test_progress_is_shown_within_a_second(page: Page, conn: Conn, address: str) -> None:
    """It takes a tenth of a second to its row, and a look a little: the page pauses for less than the rest."""
    job = make_job(conn, 1)
    run(conn, job, [0], progress=(3.0, 10.0))
    page.add_init_script(
        "const real = setTimeout; window.pauses = [];"
        "window.setTimeout = (what, pause) => { pauses.push(pause); return real(what, pause); };"
    )
    page.goto(f"{address}/jobs/{job}")
    gauge = page.locator("#running .gauge")
    expect(gauge).to_have_text("3 of 10")
    run(conn, job, [0], progress=(4.0, 10.0))
    expect(gauge).to_have_text("4 of 10", timeout=LATER)
    page.wait_for_function("pauses.length")
    assert page.evaluate("Math.max(...pauses)") <= 750


def test_limits_are_shown_with_who_changed_them(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 3)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#state")).to_have_text("pending")
    expect(page.locator("#limits")).to_be_hidden()
    anna = Requester("cli", "anna@shop")
    actions.limit(conn, job, anna, {"concurrency": 5, "rate": "10/s"})
    expect(page.locator("#limits")).to_have_text("Limits: rate 10/s, concurrency 5", timeout=SOON)
    actions.limit(conn, job, anna, {"rate": None, "deadline": "2100-01-31T12:00:00Z"})
    expect(page.locator("#limits")).to_have_text(
        re.compile(r"Limits: deadline .*2100.*, concurrency 5"), timeout=SOON
    )
    rows = page.locator("#actions li")
    expect(rows.nth(0)).to_contain_text(
        re.compile(r"limit: rate none, deadline .*2100.*anna@shop, by cli"), timeout=SOON
    )
    expect(rows.nth(1)).to_contain_text("limit: rate 10/s, concurrency 5anna@shop, by cli")


def test_text_from_actors_is_never_markup(page: Page, conn: Conn, address: str) -> None:
    evil = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    job = make_job(conn, 2, name=evil)
    record(conn, job, {"failed": [0]}, failure=Failure("failed", evil, evil, evil))
    cancel(conn, job)
    conn.execute("UPDATE callboard.jobs SET reason = %s, step = %s WHERE id = %s", (evil, evil, job))
    page.goto(address)
    expect(page.locator(".jobs .name")).to_have_text(evil)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#name")).to_have_text(evil)
    expect(page.locator("#reason")).to_have_text(evil)
    expect(page.locator("#errors pre")).to_have_text(evil)
    assert page.locator("main img, main script").count() == 0
    expect(page).not_to_have_title("taken")


def test_a_hung_item_and_a_stalled_job_are_shown(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 3)
    age(conn, job, 42)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#stalled")).to_have_text("Stalled: no worker is alive")
    worker = make_worker(conn)
    run(conn, job, [1, 2], worker=worker)
    place = "shop/prices.py:88 in fetch"
    stack = f"{place}\n    connection.recv(1)"
    outcomes.report_stacks(conn, worker, [HangSample(job, item, 1, place, stack) for item in (1, 2)])
    seen = rf"Hung: item 1 on worker {worker}, for \d+ s, at {place}, and 1 more item"
    expect(page.locator("#hung")).to_have_text(re.compile(seen), timeout=SOON)
    expect(page.locator("#stalled")).to_be_hidden()
    expect(page.locator("#running pre").first).to_have_text(stack)
    record(conn, job, {"succeeded": range(3)}, worker=worker)
    expect(page.locator("#hung")).to_be_hidden(timeout=SOON)


def test_the_board_lists_new_jobs_and_links_to_them(page: Page, conn: Conn, address: str) -> None:
    page.goto(address)
    expect(page.locator("#note")).to_contain_text("No job yet")
    expect(page.locator("#workers")).to_have_text("no worker alive")
    first = make_worker(conn)
    job = make_job(conn, 4, name="Autumn ads")
    expect(page.locator("#jobs li")).to_contain_text("Autumn ads", timeout=SOON)
    expect(page.locator("#workers")).to_have_text("1 worker, 8 threads", timeout=SOON)
    make_worker(conn, release="2026.12")
    workers.beat(conn, first, [])
    expect(page.locator("#workers")).to_have_text(
        "2 workers, 16 threads, releases 2026.11 and 2026.12", timeout=SOON
    )
    card = page.locator("#jobs li").element_handle()
    record(conn, job, {"succeeded": [0]})
    expect(page.locator("#jobs .share")).to_have_text("25.0 % of 4 items", timeout=SOON)
    # It was filled anew and not made anew: nothing flickers, and what has the focus keeps it.
    assert card.evaluate("card => card.isConnected")
    page.locator("#jobs a").click()
    expect(page.locator("#number")).to_have_text(str(job))
    page.locator(".from a").click()
    expect(page.locator("#jobs li")).to_have_count(1)


def test_a_job_with_stages_shows_and_links_each(page: Page, conn: Conn, address: str) -> None:
    parent, [first, second] = make_staged(conn)
    page.goto(address)
    expect(page.locator("#jobs li")).to_have_count(1)
    expect(page.locator("#jobs .share")).to_have_text("56.2 % of 18 items")
    page.locator("#jobs a").click()
    expect(page.locator("#stages li")).to_have_count(2)
    expect(page.locator("#stages li").first).to_contain_text("8 succeeded, 2 failed")
    expect(page.locator("#stages .bar").last).to_have_attribute("aria-valuenow", "12")
    run(conn, second, [1], step="adding")
    expect(page.locator("#running li")).to_contain_text("adding", timeout=SOON)
    expect(page.locator("#running a")).to_have_attribute("href", re.compile(rf"/api/jobs/{second}/items/1$"))
    expect(page.locator("#errors a")).to_have_attribute("href", re.compile(rf"/api/jobs/{first}/items/8$"))
    page.locator("#stages a").last.click()
    expect(page.locator("#name")).to_have_text("sum up")
    expect(page.locator("#acts button")).to_have_count(0)
    page.locator("#whole").click()
    expect(page.locator("#number")).to_have_text(str(parent))
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#stages .pill").last).to_have_text("paused", timeout=SOON)


def test_a_stage_that_fails_to_be_made_shows_its_traceback_and_can_be_retried(
    page: Page, conn: Conn, address: str
) -> None:
    parent, _ = make_staged(conn, made=False)
    making = stages.claim_stage(conn, make_worker(conn), ["work"], [])
    assert making is not None
    stages.fail_stage(
        conn, making, "its items can't be made: KeyError", {"reason": "no", "traceback": "Traceback <b>"}
    )
    page.goto(f"{address}/jobs/{parent}")
    expect(page.locator("#state")).to_have_text("failed")
    expect(page.locator("#reason")).to_have_text("stage 'sum up': its items can't be made: KeyError")
    expect(page.locator("#actions pre")).to_have_text("Traceback <b>")
    expect(page.locator("#stages li").last).to_contain_text("not made yet")
    expect(page.locator("#percent")).to_have_text("50.0 %")
    assert widths(page) == {"succeeded": "40%", "failed": "10%"}
    page.get_by_role("button", name="Retry 2 failed items").click()
    expect(page.locator("#state")).to_have_text("running", timeout=SOON)


def test_a_lost_connection_is_shown_until_it_is_back(page: Page, conn: Conn, database_url: str) -> None:
    make_job(conn, 1)
    app = open_app(database_url)
    with served(app) as address:
        page.goto(address)
        expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#link")).to_have_text("connection lost", timeout=LATER)
    expect(page.locator("#jobs li")).to_have_count(1)
    with served(app, urlsplit(address).port or 0):
        expect(page.locator("#link")).to_have_text("live", timeout=LATER)


def test_a_job_that_does_not_exist_is_a_note(page: Page, address: str) -> None:
    page.goto(f"{address}/jobs/5")
    expect(page.locator("#note")).to_have_text("there is no job 5")
    expect(page.locator("#job")).to_be_hidden()


def test_the_pages_work_under_a_prefix(page: Page, conn: Conn, database_url: str) -> None:
    make_job(conn, 1, name="Autumn ads")
    with served(Starlette(routes=[Mount("/in/side", open_app(database_url))])) as address:
        page.goto(f"{address}/in/side")
        page.locator("#jobs a").click()
        expect(page.locator("#name")).to_have_text("Autumn ads")
        assert re.search(r"/in/side/jobs/\d+$", page.url)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_fit_a_phone_in_both_colour_schemes(
    page: Page, conn: Conn, address: str, scheme: str
) -> None:
    job = make_mixed_job(conn, name="a_name_without_any_place_to_break_it_" * 4)
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/", f"/jobs/{job}"):
        page.goto(f"{address}{path}")
        expect(page.get_by_role("progressbar")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_job_is_paused_resumed_cancelled_and_retried_by_its_buttons(
    page: Page, conn: Conn, address: str
) -> None:
    job = make_mixed_job(conn)
    page.goto(f"{address}/jobs/{job}")
    button = page.get_by_role("group", name="Control").get_by_role("button")
    expect(button).to_have_text(["Pause", "Cancel", "Retry 5 failed items"])
    button.get_by_text("Pause").click()
    expect(page.locator("#state")).to_have_text("paused", timeout=SOON)
    expect(page.locator("#actions li")).to_contain_text("pause127.0.0.1, by http", timeout=SOON)
    button.get_by_text("Resume").click()
    expect(page.locator("#state")).to_have_text("running", timeout=SOON)
    button.get_by_text("Retry").click()
    expect(page.locator("#legend")).not_to_contain_text("failed", timeout=SOON)
    expect(page.locator("#actions li").first).to_contain_text("retry: 5 items")
    page.once("dialog", lambda dialog: dialog.dismiss())
    button.get_by_text("Cancel").click()
    expect(page.locator("#state")).to_have_text("running")
    page.once("dialog", lambda dialog: dialog.accept())
    button.get_by_text("Cancel").click()
    expect(page.locator("#state")).to_have_text("stopping", timeout=SOON)
    expect(button).to_have_count(0)
    conn.execute("DELETE FROM callboard.running")
    assert wait_until(lambda: jobs.close_stopped(conn), 60)
    expect(button).to_have_text(["Run 75 cancelled items", "Delete"], timeout=SOON)
    button.first.click()
    expect(page.locator("#state")).to_have_text("running", timeout=SOON)


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
    page.once("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("stopping", timeout=SOON)
    expect(page.locator("#name")).to_be_focused(timeout=SOON)


def test_an_action_is_shown_though_an_older_read_was_under_way(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 2)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#state")).to_have_text("pending")
    held = list[Route]()
    page.route(f"**/api/jobs/{job}", lambda route: route.continue_() if held else held.append(route))
    while not held:
        page.wait_for_timeout(20)
    answer = held[0].fetch()
    page.evaluate("window.setTimeout = () => 0")  # no other look comes by itself
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Pause")).to_be_enabled()
    held[0].fulfill(response=answer)
    expect(page.locator("#state")).to_have_text("paused", timeout=SOON)


def test_a_job_that_is_deleted_meanwhile_is_hidden(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 3)
    page.goto(f"{address}/jobs/{job}")
    record(conn, job, {"succeeded": [0, 1]})
    expect(page.locator("#percent")).to_have_text("66.6 %", timeout=SOON)
    record(conn, job, {"succeeded": [2]})
    actions.delete(conn, job, Requester("python", "anna"))
    expect(page.locator("#note")).to_have_text(f"there is no job {job}", timeout=SOON)
    expect(page.locator("#job")).to_be_hidden()


def test_callbacks_are_shown_without_secrets(page: Page, conn: Conn, address: str) -> None:
    job = make_job(
        conn, 1, targets=Targets((Message("tell", "mail"), Webhook("https://shop.example/<b>?key=hunter2")))
    )
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#state")).to_have_text("pending")
    expect(page.locator("#callbacks-part")).to_be_hidden()
    record(conn, job, {"succeeded": [0]})
    rows = page.locator("#callbacks li")
    expect(rows).to_have_count(2, timeout=SOON)
    expect(rows.nth(0)).to_contain_text("tellwhen it was completedwaiting, due")
    expect(rows.nth(1)).to_contain_text("https://shop.example/<b>?***when it was completedwaiting, due")
    [webhook] = callbacks.claim_callbacks(conn, webhooks=True, limit=1)
    callbacks.postpone_callback(conn, webhook, "the receiver answered 503", pause=60, last=False)
    [message] = callbacks.claim_callbacks(conn, webhooks=False, limit=1)
    callbacks.mark_delivered(conn, message)
    expect(rows.nth(0)).to_contain_text("delivered", timeout=LATER)
    expect(rows.nth(1).locator("pre")).to_have_text("the receiver answered 503")
    assert "hunter2" not in page.content()


def test_a_finished_job_is_deleted_after_a_question(page: Page, conn: Conn, address: str) -> None:
    job, other = make_job(conn, 2, name="done"), make_job(conn, 1, name="another")
    page.goto(f"{address}/jobs/{job}")
    button = page.get_by_role("button", name="Delete")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(button).to_have_count(0)
    record(conn, job, {"succeeded": [0, 1]})
    asked = list[str]()

    def refuse(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.once("dialog", refuse)
    button.click()
    expect(page.locator("#state")).to_have_text("completed")
    page.once("dialog", lambda dialog: dialog.accept())
    button.click()
    expect(page.locator("#jobs li")).to_have_count(1)
    assert urlsplit(page.url).path == "/"
    expect(page.locator("#jobs .number")).to_contain_text(str(other))
    assert asked == ["Delete done, with its 2 items, results, errors and history? Nothing brings them back."]
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#note")).to_have_text(f"there is no job {job}")


def test_a_refused_action_is_shown(page: Page, conn: Conn, address: str) -> None:
    job = make_mixed_job(conn)
    page.goto(f"{address}/jobs/{job}")
    page.route("**/pause", lambda route: route.continue_(url=route.request.url.replace("pause", "resum")))
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("alert")).to_contain_text("is not served here", timeout=SOON)
