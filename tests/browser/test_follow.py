"""The script of docs/api.md that follows a job in a browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from callboard.sql.pool import connect
from tests.support import documents
from tests.support.jobs import make_job, record
from tests.support.webapp import SILENT, open_app, served
from tests.support.workers import wait_until


@pytest.fixture
def address(database_url: str) -> Iterator[str]:
    with served(open_app(database_url)) as url:
        yield url


@pytest.mark.parametrize("events", ["come", "are refused", "are kept"])
def test_a_page_follows_a_job_to_its_end(page: Page, database_url: str, address: str, events: str) -> None:
    """By events; and where there are none, or a proxy keeps them, by questions."""
    [script] = documents.blocks("js", "docs/api.md")
    if events == "are kept":
        page.clock.install()
        page.add_init_script(f"{SILENT} window.silent = true")
    if events == "are refused":
        page.route("**/events", lambda route: route.fulfill(status=503))
    with connect(database_url) as conn:
        job = make_job(conn, 3, published=0)
        page.goto(f"{address}/healthz")
        page.evaluate(
            f"() => {{ {script} window.seen = []; follow('/api/v1/jobs/{job}', (job) => seen.push(job.succeeded)) }}"
        )
        if events == "are kept":
            page.clock.fast_forward(41_000)
        assert wait_until(lambda: page.evaluate("() => seen.at(-1)") == 0, 300)
        record(conn, job, {"succeeded": [0]})
        assert wait_until(lambda: page.evaluate("() => seen.at(-1)") == 1, 300)
        record(conn, job, {"succeeded": [1, 2]})
        assert wait_until(lambda: page.evaluate("() => seen.at(-1)") == 3, 300)
    count = page.evaluate("() => seen.length")
    page.wait_for_timeout(2500)  # it does not ask any more
    assert page.evaluate("() => seen.length") == count
