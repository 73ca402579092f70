"""The other pages in a browser: items, workers, queues, tokens, what is shared; all are accessible and quick."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import axe_playwright_python
import pika
import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from callboard.middleware.rabbitmq import queue_admin
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import Failure
from callboard.sql.writes import actions, tokens
from callboard.sql.writes.requests import Requester
from callboard.web import create_app
from tests.support.databases import stored_columns
from tests.support.jobs import BAD, make_job, make_mixed_job, make_staged, make_worker, record, run
from tests.support.timer import Timer
from tests.support.vhosts import Broker
from tests.support.webapp import SILENT, open_app, served
from tests.support.workers import wait_until

SOON = 60_000
ANNA = Requester("cli", "anna")
EVIL = "</pre><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
#: The schemes of colours, and what axe looks for in each: everything, and what colours may break.
COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
SCHEMES: Sequence[tuple[Literal["light", "dark"], dict[str, Any]]] = (("light", {}), ("dark", COLOURS))
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
#: What is wrong. Of what passes axe describes one node, not all, which took a sixth of the processor time.
VIOLATIONS = "rules => axe.run({...rules, resultTypes: ['violations']}).then(found => found.violations)"

#: Counts the streams that a page has open, as `streams`.
COUNTED = """
window.streams = 0;
window.EventSource = class extends EventSource {
  constructor(url) { super(url); streams += 1; }
  close() { super.close(); streams -= 1; }
};
"""


@pytest.fixture(autouse=True)
def no_worker_left(conn: Conn) -> Iterator[None]:
    """The tests share a database."""
    yield
    conn.execute("DELETE FROM callboard.workers")


def opened(browser: Browser, **options: Any) -> Page:
    """A page in a context with these options, which waits as long as the fixtures' pages do."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(300_000)
    return page


@pytest.mark.parametrize("script", ["page", "plain_page"])
def test_an_item_shows_its_life_and_is_retried(
    request: pytest.FixtureRequest, conn: Conn, address: str, script: str
) -> None:
    page: Page = request.getfixturevalue(script)
    job = make_mixed_job(conn)
    # Its items ran for 10 ms, and it may be less than that since it was made.
    conn.execute("UPDATE callboard.jobs SET created_at = created_at - interval '1 minute' WHERE id = %s", (job,))
    page.goto(f"{address}/jobs/{job}?state=failed")
    page.locator("#items tbody a").first.click()
    expect(page.locator("#name")).to_have_text("item 20")
    expect(page.locator("#attempts")).to_contain_text(BAD.message)
    expect(page.locator("#attempts details pre")).to_have_text(BAD.traceback or "")
    expect(page.locator("#timeline li")).to_have_text(
        [re.compile("job created"), re.compile("started"), re.compile("attempt 1 failed")]
    )
    expect(page.locator("#values pre")).to_have_text(re.compile(r"\[\s*20\s*\]"))
    page.get_by_role("link", name="Next failed").click()
    expect(page.locator("#name")).to_have_text("item 21")
    page.get_by_role("button", name="Retry this item").click()
    expect(page.locator("#head .pill, #item .pill").first).to_have_text(re.compile("pending|queued"), timeout=SOON)
    expect(page.locator("#timeline li").last).to_have_text(re.compile("not (published|started) yet"))
    assert page.url.endswith(("/21", "/21?state=failed"))


def test_a_group_of_errors_leads_to_its_items_and_is_retried(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 10)
    record(conn, job, {"failed": [1, 2]})
    record(conn, job, {"failed": [3]}, failure=Failure("failed", "OSError", "no", "a.py:1 in b", "Traceback", 9))
    page.goto(f"{address}/jobs/{job}")
    group = page.locator("#errors li").filter(has_text="OSError")
    group.get_by_role("link", name="Items").click()
    expect(page.locator("#items tbody tr")).to_have_count(1)
    expect(page.locator("#item-3")).to_contain_text("OSError: no")
    page.locator("#errors li").filter(has_text="ValueError").get_by_role("button", name="Retry these 2").click()
    expect(page.locator("#errors li").filter(has_text="ValueError")).to_contain_text("0 failed", timeout=SOON)
    expect(page.locator("#head .legend")).to_contain_text("1 failed")
    expect(page.locator("#history")).to_contain_text(re.compile(r"retry: 2 items \(error \w+\)"), timeout=SOON)


def test_many_groups_of_errors_are_folded(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 23)
    for item in range(22):
        failure = Failure("failed", f"Error{item:02}", "no", "a.py:1 in b", "Traceback", 9)
        record(conn, job, {"failed": [item]}, failure=failure)
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#errors li:visible")).to_have_count(20)
    page.locator("#errors").get_by_text("2 more groups").click()
    expect(page.locator("#errors li:visible").last).to_contain_text("Error21")
    record(conn, job, {"failed": [22]}, failure=failure)
    expect(page.locator("#errors li:visible").first).to_contain_text("2 failed", timeout=SOON)
    expect(page.locator("#errors li:visible")).to_have_count(22)


def test_an_item_is_found_by_its_key(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 40)
    conn.execute("UPDATE callboard.items SET item_key = 'c-' || item WHERE job_id = %s", (job,))
    page.goto(f"{address}/jobs/{job}")
    page.get_by_label("Find an item by its key").fill("c-33")
    page.keyboard.press("Enter")
    expect(page.locator("#items tbody tr")).to_have_count(1)
    expect(page.locator("#item-33")).to_contain_text("c-33")


def test_text_of_others_is_never_markup_on_any_page(page: Page, conn: Conn, address: str) -> None:
    worker = make_worker(conn, EVIL)
    conn.execute("UPDATE callboard.workers SET host = %s, release = %s, trouble = %s", (EVIL, EVIL, EVIL))
    job = make_job(conn, 2, name=EVIL, actor=EVIL)
    run(conn, job, [1], step=EVIL, worker=worker)
    record(conn, job, {"failed": [0]}, failure=Failure("failed", EVIL, EVIL, EVIL, EVIL, 9))
    args = json.dumps({"args": [EVIL], "kwargs": {"x": EVIL}}).encode()
    conn.execute("UPDATE callboard.items SET args = %s, item_key = %s || item WHERE job_id = %s", (args, EVIL, job))
    for path in ("/workers", "/queues", f"/jobs/{job}/items/0", f"/jobs/{job}/items/1", f"/share/{job}"):
        page.goto(f"{address}{path}")
        expect(page.locator("main")).to_contain_text("document.title='taken'")
        assert page.locator("main img, main script:not(#data)").count() == 0, path
        expect(page).not_to_have_title("taken")
    answer = page.request.get(f"{address}/badge/{job}.svg")
    assert "<img" not in answer.text()
    assert "<script" not in answer.text()


TRACEBACK = """Traceback (most recent call last):
  File "/usr/lib/python3.11/site-packages/dramatiq/worker.py", line 1, in call
    return fn()
           ^^^^
  File "/usr/lib/python3.11/site-packages/dramatiq/actor.py", line 2, in call
    return fn()
  File "/app/shop/prices.py", line 88, in parse
    float("12,5")
ValueError: 12,5"""


@pytest.mark.parametrize("script", ["page", "plain_page"])
def test_frames_of_libraries_are_folded_texts_copied_and_an_items_log_is_linked(
    request: pytest.FixtureRequest, conn: Conn, address: str, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_LOG_LINK", "https://logs.example/?q={job}%2F{item}&w={worker}")
    page: Page = request.getfixturevalue(script)
    job = make_job(conn, 30)
    record(conn, job, {"failed": [3, 17]}, failure=Failure("failed", "ValueError", "12,5", "p:1", TRACEBACK, 9))
    page.goto(f"{address}/jobs/{job}/items/17?state=failed")
    parts = page.locator("#attempts details pre")
    expect(parts).to_have_count(3)
    expect(page.get_by_text("2 frames of libraries")).to_be_visible()
    expect(parts.nth(0)).to_be_visible()
    expect(parts.nth(1)).to_be_hidden()
    expect(parts.nth(2)).to_contain_text("shop/prices.py")
    expect(page.get_by_role("link", name="Log")).to_have_attribute("href", f"https://logs.example/?q={job}%2F17&w=1")
    if script == "page":
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("#attempts [data-copy]").click()
        expect(page.locator("#attempts [data-copy]")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == TRACEBACK
    else:
        expect(page.locator("[data-copy]").first).to_be_hidden()
    page.get_by_role("link", name="Previous failed").click()
    expect(page.locator("#name")).to_have_text("item 3")
    expect(page.get_by_role("link", name="Previous")).to_have_count(0)
    page.get_by_role("link", name="Next failed").click()
    expect(page.locator("#name")).to_have_text("item 17")


@pytest.mark.parametrize("script", ["page", "plain_page"])
def test_long_arguments_are_folded_and_copied_whole(
    request: pytest.FixtureRequest, conn: Conn, address: str, script: str
) -> None:
    page: Page = request.getfixturevalue(script)
    job = make_job(conn, 2)
    given = {"rows": [{"sku": f"A-{n}", "text": EVIL} for n in range(30)], "last": "the end"}
    args = json.dumps({"args": [], "kwargs": given}).encode()
    conn.execute("UPDATE callboard.items SET args = %s WHERE job_id = %s AND item = 0", (args, job))
    page.goto(f"{address}/jobs/{job}/items/1")
    expect(page.locator("#values pre")).to_have_count(1)
    page.goto(f"{address}/jobs/{job}/items/0")
    expect(page.locator("#values pre")).to_have_count(2)
    expect(page.get_by_text('"A-0"')).to_be_visible()
    expect(page.get_by_text("the end")).to_be_hidden()
    page.get_by_text("105 more lines").click()
    expect(page.get_by_text("the end")).to_be_visible()
    if script == "page":
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("#values [data-copy]").click()
        expect(page.locator("#values [data-copy]")).to_have_text("Copied")
        assert json.loads(page.evaluate("navigator.clipboard.readText()")) == given


def test_a_search_is_suggested_word_by_word_and_each_word_is_taken_away(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 1, name="spring ads", actor="shop:charge")
    page.goto(f"{address}/?q=state:pending+metadata.a:1+%22spring+ads%22")
    expect(page.locator("#jobs li")).to_have_count(1)
    words = page.locator("#words option")
    for word in ("is:stalled", "metadata.a:1", "actor:shop:charge"):
        expect(page.locator(f'#words option[value$="{word}"]')).to_have_count(1)
    page.get_by_role("combobox").fill('"spring ads" act')
    expect(words.first).to_have_attribute("value", '"spring ads" is:open')
    page.get_by_role("link", name="Remove metadata.a:1").click()
    expect(page.get_by_role("combobox")).to_have_value('state:pending "spring ads"')
    page.get_by_role("link", name="Remove state:pending").click()
    expect(page.locator(".chips a")).to_have_count(1)
    expect(page.locator("#jobs li")).to_have_count(1)
    page.get_by_role("link", name='Remove "spring ads"').click()
    expect(page.locator(".chips")).to_have_count(0)
    expect(page.locator(f"#job-{job}")).to_be_visible()


def test_the_search_field_has_the_search_of_the_list_after_going_back(page: Page, conn: Conn, address: str) -> None:
    make_job(conn, 1, name="zebra")
    page.goto(f"{address}/?q=zebra")
    expect(page.locator("#zone")).to_be_visible()
    field = page.locator("#search")
    field.fill("giraffe")
    field.press("Enter")
    expect(page.locator("#jobs li")).to_have_count(0)
    page.go_back()
    expect(page.locator("#jobs li")).to_have_count(1)
    expect(field).to_have_value("zebra")
    expect(page.locator("#zone")).to_be_visible()  # the script of the page has run
    field.fill("giraffe")  # as Chromium shows a page that it kept in memory
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    expect(field).to_have_value("zebra")


def test_a_name_in_a_right_to_left_script_does_not_mix_with_the_text_around_it(
    page: Page, conn: Conn, address: str
) -> None:
    job = make_job(conn, 2, name="\u05de\u05d5\u05d3\u05e2\u05d5\u05ea 2026 (ads)")
    actions.pause(conn, job, Requester("cli", "\u05d0\u05e0\u05d4"))
    page.goto(f"{address}/jobs/{job}")
    assert page.locator("#name").evaluate("(node) => getComputedStyle(node).unicodeBidi") == "plaintext"
    who, when = (
        page.evaluate(f"document.querySelector('#sentence {one}').getBoundingClientRect().x") for one in ("bdi", "time")
    )
    assert who < when, "digits after the name would stand on its left"


def test_a_row_draws_how_fast_its_job_is(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 100, name="drawn")
    record(conn, job, {"succeeded": range(50)})
    conn.execute(
        "INSERT INTO callboard.samples (job_id, taken_at, final, failed)"
        " SELECT %s, now() - interval '1 min' + n * interval '5 s', n * n, 0 FROM generate_series(1, 7) AS n",
        (job,),
    )
    page.goto(f"{address}/?q=drawn")
    points = page.locator("#jobs .spark polyline")
    expect(points).to_have_attribute("points", re.compile(r"^0\.0,11\.8 \S+ \S+ \S+ \S+ 60\.0,1\.0$"))
    record(conn, job, {"succeeded": range(50, 60)})
    expect(points).to_have_attribute("points", re.compile(r"^0\.0,\S+( \S+){5} 60\.0,\S+$"), timeout=SOON)


@pytest.mark.parametrize("script", ["page", "plain_page"])
def test_what_is_under_more_works(request: pytest.FixtureRequest, conn: Conn, address: str, script: str) -> None:
    """Limits, a recount, keeping, and running again; and who paused it."""
    page: Page = request.getfixturevalue(script)
    job = make_job(conn, 4, name="more")
    page.goto(f"{address}/jobs/{job}")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#sentence")).to_have_text(
        re.compile(r"^Paused by 127\.0\.0\.1, .*: no more items start"), timeout=SOON
    )
    page.get_by_text("More", exact=True).click()
    page.get_by_label("rate").fill("5/s")
    page.get_by_label("concurrency").fill("2")
    page.get_by_role("button", name="Change limits").click()
    expect(page.locator("#limits")).to_have_text("rate 5/s, concurrency 2", timeout=SOON)
    if script == "plain_page":
        page.get_by_text("More", exact=True).click()
    page.get_by_label("rate").fill("none")
    page.get_by_role("button", name="Change limits").click()
    expect(page.locator("#limits")).to_have_text("concurrency 2", timeout=SOON)
    conn.execute("UPDATE callboard.jobs SET succeeded = 1 WHERE id = %s", (job,))
    page.reload()
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Recount").click()
    expect(page.locator("#recount h1")).to_have_text("16 checks, 1 drift")
    expect(page.locator("#recount li")).to_contain_text("stored 1, counted 0")
    conn.execute("UPDATE callboard.jobs SET succeeded = 0 WHERE id = %s", (job,))
    record(conn, job, {"succeeded": range(3), "failed": [3]})
    page.get_by_role("link", name="more").click()
    expect(page.locator("#kept-until time")).to_be_visible()
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("#kept-until")).to_have_text("somebody deletes it", timeout=SOON)
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Recount").click()
    expect(page.locator("#recount h1")).to_have_text("16 checks, no drift")
    page.get_by_role("link", name="more").click()
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#head .from")).not_to_contain_text(str(job))
    expect(page.locator("#history li")).to_contain_text(f"submit: the items of job {job}")


@pytest.mark.parametrize("script", ["page", "plain_page"])
def test_chosen_jobs_are_paused_and_deleted_together(
    request: pytest.FixtureRequest, conn: Conn, address: str, script: str
) -> None:
    page: Page = request.getfixturevalue(script)
    names = [f"together by {script} {n}" for n in range(3)]  # each finds its own only, in either order
    first, second, third = (make_job(conn, 2, name=name) for name in names)
    page.goto(f'{address}/?q="together by {script}"')
    expect(page.locator("#bulk")).to_be_hidden()
    page.get_by_label(f"Select {names[0]}").check()
    page.get_by_label(f"Select {names[1]}").check()
    expect(page.locator("#chosen")).to_have_text("2 selected" if script == "page" else "")
    page.locator("#bulk").get_by_role("button", name="Pause").click()
    for job, state in ((first, "paused"), (second, "paused"), (third, "pending")):
        expect(page.locator(f"#job-{job} .pill")).to_have_text(state, timeout=SOON)
    for job in (first, second):
        record(conn, job, {"succeeded": range(2)})
    page.goto(f'{address}/?q="together by {script}"')
    page.get_by_label(f"Select {names[0]}").check()
    page.get_by_label("all 3 that match").check()
    expect(page.locator("#chosen")).to_have_text("")
    page.locator("#bulk").get_by_role("button", name="Pause").click()
    expect(page.locator("#confirm")).to_contain_text("Pause 1 job?")
    page.get_by_role("link", name="Leave them as they are").click()
    page.get_by_label(f"Select {names[0]}").check()
    page.get_by_label("all 3 that match").check()
    page.locator("#bulk").get_by_role("button", name="Delete").click()
    expect(page.locator("#confirm")).to_contain_text("Delete 2 jobs?")
    expect(page.locator("#confirm")).to_contain_text("This changes 4 items. 1 job can't be")
    page.get_by_role("button", name="Delete 2 jobs").click()
    expect(page.locator("#jobs li")).to_have_count(1, timeout=SOON)
    expect(page.locator(f"#job-{third}")).to_be_visible()


def test_the_chart_shows_how_a_job_went_and_what_was_done_to_it(page: Page, conn: Conn, address: str) -> None:
    job = make_job(conn, 100)
    record(conn, job, {"succeeded": range(50), "failed": range(50, 60)})
    conn.execute("UPDATE callboard.jobs SET started_at = now() - interval '10 min' WHERE id = %s", (job,))
    conn.execute(
        "INSERT INTO callboard.samples (job_id, taken_at, final, failed)"
        " SELECT %s, now() - interval '10 min' + n * interval '1 min', 6 * n, n FROM generate_series(1, 9) AS n",
        (job,),
    )
    page.goto(f"{address}/jobs/{job}")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#chart g")).to_have_count(60, timeout=SOON)
    expect(page.locator("#chart .marks")).to_contain_text("pause", timeout=SOON)
    expect(page.locator("#chart h2")).to_contain_text(re.compile(r"peak \d+\.\d/(s|min)"))
    page.locator("#chart g").nth(30).hover()
    expect(page.locator("[data-read]")).to_have_text(re.compile(r"0\.1/s|6\.0/min"))
    page.get_by_text("As a table").click()
    expect(page.locator("#chart tbody tr")).to_have_count(12)
    expect(page.locator("#chart tbody tr").last).to_contain_text("60")
    record(conn, job, {"succeeded": [60]})
    expect(page.locator("#head .legend")).to_contain_text("51 succeeded", timeout=SOON)
    expect(page.locator("#chart details")).to_have_attribute("open", "")


def test_workers_come_and_go_on_their_page(page: Page, conn: Conn, address: str) -> None:
    page.goto(f"{address}/workers")
    expect(page.get_by_role("heading", level=1)).to_have_text("No worker is alive")
    make_worker(conn, "shop:charge")
    expect(page.get_by_role("heading", level=1)).to_have_text("1 worker, 8 threads", timeout=SOON)
    make_worker(conn, release="2026.12")
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "2 workers, 16 threads, releases 2026.11 and 2026.12", timeout=SOON
    )
    expect(page.locator("tbody").first).to_contain_text("shop:charge")


def test_dead_letters_are_put_back_by_their_button(
    page: Page, plain_page: Page, conn: Conn, address: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_admin, "ANSWER_SECONDS", 300.0)
    make_worker(conn, "work")
    job = make_job(conn, 2)
    record(conn, job, {"failed": [0, 1]})
    with broker.vhost() as url, closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        monkeypatch.setenv("AMQP_URL", url)
        channel = connection.channel()
        for name in ("default", "default.XQ"):
            channel.queue_declare(name, durable=True)
        for item, one in enumerate((page, plain_page)):
            of = pika.BasicProperties(type="work", correlation_id=f"{job}/{item}", message_id=f"m-{item}")
            channel.basic_publish("", "default.XQ", b'{"args":[1,"\xc3\xa9"]}', of)
            assert wait_until(lambda: broker.queues(url)["default.XQ"] == 1, 300)
            one.goto(f"{address}/queues")
            one.locator("#queues a").click()
            expect(one.locator("#letters li")).to_contain_text(f"item {item} of job {job}")
            expect(one.locator("#letters li")).to_contain_text(f"ValueError: {BAD.message}")
            body = one.locator("#letters pre").last.inner_text()
            assert body.split("\n") == ["{", '  "args": [', "    1,", '    "é"', "  ]", "}"]
            one.get_by_role("button", name="Put them back").click()
            expect(one.locator("#letters")).to_contain_text("No dead letters.", timeout=SOON)
            one.goto("about:blank")  # it asks every five seconds, and has the next one in its hand for a moment
        assert broker.queues(url)["default"] == 2


def test_queues_are_shown_without_rabbitmq_too(
    page: Page, conn: Conn, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMQP_URL", raising=False)
    make_worker(conn, "shop:charge")
    page.goto(f"{address}/queues")
    expect(page.locator("#queues")).to_contain_text("AMQP_URL is not set")
    expect(page.locator("#queues tbody")).to_contain_text("shop:charge")


def test_a_job_is_shared_and_embedded_and_its_token_revoked(browser: Browser, conn: Conn, shared_url: str) -> None:
    job, other = make_job(conn, 4, name="shared"), make_job(conn, 1)
    name = "anna of the nightly team, on her phone"
    admin, _ = tokens.create(conn, ANNA, name=name, scopes=["read", "control", "admin"])
    page = opened(browser)
    with served(create_app(url=shared_url)) as address:
        page.goto(f"{address}/jobs/{job}")
        page.get_by_label("Token").fill(admin)
        page.keyboard.press("Enter")
        expect(page.locator("#live")).to_be_visible()
        page.set_viewport_size({"width": 360, "height": 740})
        tools, pages = (page.locator(part).bounding_box() for part in (".tools", ".top nav"))
        assert tools is not None
        assert pages is not None
        assert tools["height"] < 40, "the tools take one line"
        assert pages["y"] >= tools["y"] + tools["height"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator(".top nav").evaluate("nav => nav.scrollWidth <= nav.clientWidth")
        page.set_viewport_size({"width": 1280, "height": 3000})
        page.get_by_text("More", exact=True).click()
        page.get_by_role("button", name="Share").click()
        link = page.locator("#shared dd a").first.get_attribute("href") or ""
        token = link.rpartition("token=")[2]
        page.goto(link)
        expect(page.locator("#name")).to_have_text("shared")
        expect(page.locator(".tools")).not_to_contain_text("share of job")  # it is no login
        guest = opened(browser)
        guest.goto(link)
        expect(guest.locator("#name")).to_have_text("shared")
        expect(guest.get_by_role("button", name="Pause")).to_have_count(0)
        record(conn, job, {"succeeded": [0]})
        expect(guest.locator("[data-of=percent]")).to_have_text("25.0 %", timeout=SOON)
        for path in (f"/jobs/{job}", f"/jobs/{job}/items/0", f"/share/{other}", "/", "/workers"):
            assert guest.request.get(f"{address}{path}?token={token}").status in (403, 404), path
        with served(elsewhere(address, job, token)) as foreign:
            guest.goto(foreign)
            expect(guest.locator("callboard-progress")).to_contain_text("25.0 %", timeout=SOON)
            expect(guest.frame_locator("iframe").locator("#name")).to_have_text("shared")
            assert guest.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 50
            record(conn, job, {"succeeded": [1]})
            expect(guest.locator("callboard-progress")).to_contain_text("50.0 %", timeout=SOON)
            expect(guest.frame_locator("iframe").locator("[data-of=percent]")).to_have_text("50.0 %", timeout=SOON)
        page.goto(f"{address}/tokens")
        page.get_by_role("row", name=f"share of job {job}").get_by_role("button", name="Revoke").click()
        expect(page.get_by_role("row", name=f"share of job {job}")).to_have_count(0)
        page.get_by_label("Name of the user").fill("a program")
        page.get_by_role("button", name="Create").click()
        expect(page.locator("#secret")).to_contain_text("cb_")
        assert wait_until(lambda: guest.request.get(link).status == 401, 300)
        guest.goto(link)
        expect(guest.locator("#problem .detail")).to_contain_text("revoked or expired")
    page.context.close()


def test_what_is_not_shared_any_more_says_so_on_other_sites(page: Page, conn: Conn, shared_url: str) -> None:
    job = make_job(conn, 1)
    others = [{"status": 404, "headers": {"Access-Control-Allow-Origin": "*"}, "body": "of a proxy"}]
    page.route(
        f"**/api/v1/jobs/{job}?token=*", lambda route: route.fulfill(**others.pop()) if others else route.continue_()
    )
    with served(create_app(url=shared_url)) as address, served(elsewhere(address, job, "cb_over")) as foreign:
        page.goto(foreign)
        expect(page.frame_locator("iframe").locator("#problem")).to_contain_text("revoked or expired")
        expect(page.locator("callboard-progress")).to_contain_text("no longer shown")
        assert not others


def test_a_job_on_another_site_goes_on_where_its_events_are_kept(page: Page, conn: Conn, shared_url: str) -> None:
    job = make_job(conn, 4)
    secret, _ = tokens.create(conn, ANNA, name="a share", scopes=["read"], job=job)
    page.clock.install()
    page.add_init_script(f"{SILENT} window.silent = true")
    with served(create_app(url=shared_url)) as address, served(elsewhere(address, job, secret)) as foreign:
        page.goto(foreign)
        expect(page.locator("callboard-progress [part=name]")).to_be_attached()
        page.clock.fast_forward(6_000)
        expect(page.locator("callboard-progress")).to_contain_text("0.0 %")


def test_more_jobs_on_a_page_of_another_site_than_a_browser_has_connections_are_all_live(
    page: Page, conn: Conn, shared_url: str
) -> None:
    job = make_job(conn, 4)
    secret, _ = tokens.create(conn, ANNA, name="a share", scopes=["read"], job=job)
    page.add_init_script(COUNTED)
    with served(create_app(url=shared_url)) as address, served(elsewhere(address, job, secret, times=8)) as foreign:
        page.goto(foreign)
        elements, frames = page.locator("callboard-progress [data-of=percent]"), page.frames[1:]
        for done, shown in enumerate(("0.0 %", "25.0 %", "50.0 %")):
            if done == 2:  # the tab is in the background
                page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
                page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
                assert page.evaluate("streams") == 0
            if done:
                record(conn, job, {"succeeded": [done - 1]})
            expect(elements).to_have_text([shown] * 8, timeout=SOON)
            for frame in frames:
                expect(frame.locator("[data-of=percent]")).to_have_text(shown, timeout=SOON)


def elsewhere(address: str, job: int, token: str, times: int = 1) -> Starlette:
    """An app of another origin that shows a job."""
    shown = (
        f'<callboard-progress job="{job}" token="{token}"></callboard-progress>'
        f'<img src="{address}/badge/{job}.svg?token={token}">'
        f'<iframe src="{address}/embed/{job}?token={token}"></iframe>'
    )

    async def shows(_request: Request) -> Response:
        script = f'<script type="module" src="{address}/static/callboard-progress.js"></script>'
        return HTMLResponse("<!doctype html>" + script + shown * times)

    return Starlette(routes=[Route("/", shows)])


def test_a_page_that_says_what_is_wrong_with_a_search_does_not_load_again(page: Page, address: str) -> None:
    page.clock.install()
    page.goto(f"{address}/?q=odd:1")
    expect(page.locator("#wrong")).to_be_visible()
    page.evaluate("document.body.dataset.mark = 'the same'")
    page.clock.run_for(30_000)
    assert page.locator("[data-every]").count() == 0
    expect(page.locator("body")).to_have_attribute("data-mark", "the same")


def test_axe_finds_nothing_serious(browser: Browser, conn: Conn, address: str) -> None:
    """The dark scheme changes colours only, so the rules of colours are those that it may break."""
    make_worker(conn)
    job, (parent, _) = make_mixed_job(conn), make_staged(conn)
    page = opened(browser, bypass_csp=True)
    paths = [
        *("/", "/?q=odd:1", "/workers", "/queues", "/tokens", "/docs", "/jobs/5"),
        *(f"/jobs/{job}", f"/jobs/{parent}", f"/jobs/{job}/items/20", f"/share/{job}", f"/jobs/{job}/cancel"),
    ]
    found = {}
    for path in paths:
        page.emulate_media(color_scheme="light")
        page.goto(f"{address}{path}")
        page.evaluate(AXE)
        for scheme, rules in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            found[path, scheme] = serious(page, rules)
    page.route("**/api/v1/**", lambda route: route.abort())
    page.goto(f"{address}/jobs/{job}")
    expect(page.locator("#live")).to_have_text(re.compile("^reconnecting"))
    page.evaluate(AXE)
    for scheme, _ in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        found["a lost connection", scheme] = serious(page, COLOURS)
    page.context.close()
    assert not any(found.values()), {path: rules for path, rules in found.items() if rules}


def serious(page: Page, rules: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """What axe finds that is serious, or worse: the name of each rule, and where it is broken."""
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in page.evaluate(VIOLATIONS, rules)
        if one["impact"] in ("serious", "critical")
    ]


def test_large_jobs_and_many_jobs_stay_quick(page: Page, conn: Conn, address: str) -> None:
    small = make_job(conn, 10)
    large = make_job(conn, 1, name="large")
    record(conn, large, {"succeeded": [0]})
    conn.execute(
        "INSERT INTO callboard.items SELECT (jsonb_populate_record(i, jsonb_build_object('item', n))).*"
        " FROM callboard.items AS i, generate_series(1, 99999) AS n WHERE i.job_id = %s AND i.item = 0",
        (large,),
    )
    conn.execute(
        "UPDATE callboard.jobs SET total = 100000, bulk_end = 100000, watermark = 100000, published = 100000,"
        " succeeded = 99999, state = 'running', finished_at = NULL WHERE id = %s",
        (large,),
    )
    conn.execute(
        "UPDATE callboard.items SET state = 'waiting', finished_at = NULL WHERE job_id = %s AND item = 99999", (large,)
    )
    columns = stored_columns(conn, "jobs")
    conn.execute(
        f"INSERT INTO callboard.jobs ({columns})"
        f" SELECT {columns} FROM (SELECT (jsonb_populate_record(j, jsonb_build_object('id', j.id + n))).*"
        " FROM callboard.jobs AS j, generate_series(1000, 4000) AS n WHERE j.id = %s) AS copies",
        (small,),
    )
    conn.execute("ANALYZE callboard.items, callboard.jobs")
    took = {}
    for path in (f"/jobs/{small}", f"/jobs/{large}", "/"):
        seconds = []
        for _ in range(5):
            timer = Timer()
            assert page.request.get(f"{address}{path}").ok
            seconds.append(timer.seconds)
        took[path] = min(seconds)
    assert took[f"/jobs/{large}"] < 3 * took[f"/jobs/{small}"] + 0.05, took
    assert took["/"] < 1, took
    page.goto(f"{address}/jobs/{large}?state=queued")
    expect(page.locator("#item-99999")).to_contain_text("queued")


def test_a_page_heals_when_the_database_is_back(
    page: Page, postgres_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://127.0.0.1:1")  # nothing listens there, and no page needs it
    name = urlsplit(database_url).path.lstrip("/")
    with connect(database_url) as conn:
        job = make_job(conn, 4)
    with served(open_app(database_url)) as address, psycopg.connect(postgres_url, autocommit=True) as admin:
        page.goto(f"{address}/jobs/{job}")
        expect(page.locator("#live")).to_have_text("live")
        admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        expect(page.locator("#live")).to_have_text(re.compile("^reconnecting"), timeout=2 * SOON)
        late = page.context.new_page()
        late.goto(f"{address}/jobs/{job}")
        expect(late.locator("#problem .detail")).to_contain_text("The database can't be reached")
        admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        with connect(database_url) as conn:
            record(conn, job, {"succeeded": [0]})
        expect(page.locator("#live")).to_have_text("live", timeout=2 * SOON)
        expect(page.locator("[data-of=percent]")).to_have_text("25.0 %", timeout=2 * SOON)
        expect(late.locator("[data-of=percent]")).to_have_text("25.0 %", timeout=2 * SOON)
