"""Problems: a page for a browser that asks for a page, and JSON for everybody else; with the headers of any answer."""

import asyncio
import json
from itertools import product

import httpx
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request

from callboard.sql.pool import Conn
from callboard.web import create_app
from callboard.web.problems import problem_of
from tests.support.databases import as_role, clerk
from tests.support.jobs import make_job
from tests.support.webapp import get, open_app, served

PAGE, JSON = "text/html; charset=utf-8", "application/problem+json"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ACCEPTED = (BROWSER["Accept"], "application/json", "*/*", "text/event-stream")
#: Of each kind one that is unknown; a detail above 1,024 bytes would be packed if it were JSON.
API = ("/api/jobs/5", "/api/v1/jobs/5", "/api/nothing", "/api/jobs/5/events")
PAGES = ("/jobs/5", "/embed/5", "/share/5", "/badge/5.svg", "/static/nothing", "/nothing", f"/{'long' * 300}")


def test_only_a_browser_that_asks_for_a_page_gets_a_problem_as_one(app: Starlette) -> None:
    async def ask() -> dict[tuple[str, str, str], tuple[int, str]]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            found = {}
            for path, accepted, method in product((*API, *PAGES), ACCEPTED, ("GET", "HEAD")):
                answer = await client.request(method, path, headers={"Accept": accepted})
                found[path, accepted, method] = answer.status_code, answer.headers["content-type"]
            return found

    found = asyncio.run(ask())
    wanted = {
        (path, accepted, method): (404, PAGE if path in PAGES and "text/html" in accepted else JSON)
        for path, accepted, method in found
    }
    assert found == wanted


@pytest.mark.parametrize(("path", "root"), [("/static/no/thing", "../../"), ("/static/nothing", "../"), ("/no", "./")])
def test_the_links_of_a_problem_lead_to_the_app(app: Starlette, path: str, root: str) -> None:
    (answer,) = get(app, path, headers=BROWSER)
    assert f'data-root="{root}"' in answer.text


@pytest.mark.parametrize(
    ("path", "ancestors"), [("/jobs/5", "'none'"), ("/embed/5", "*"), ("/embed/5?token=cb_over", "*")]
)
def test_any_site_may_show_what_is_wrong_with_an_embedded_job(database_url: str, path: str, ancestors: str) -> None:
    for app in (open_app(database_url), create_app(url=database_url)):
        (answer,) = get(app, path, headers=BROWSER)
        assert answer.headers["content-security-policy"].endswith(f"frame-ancestors {ancestors}"), answer.text


@pytest.mark.parametrize("path", ["/", "/embed/5", "/api/jobs"])
def test_a_bug_has_the_headers_of_any_answer(app: Starlette, path: str) -> None:
    (sound,) = get(app, path, headers=BROWSER)
    app.state.database.read = app.state.database.read_together = None
    (answer,) = get(app, path, headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (500, JSON if path == "/api/jobs" else PAGE)
    assert "the server&#39;s log has the traceback" in answer.text or answer.headers["content-type"] == JSON
    assert "nosniff" in answer.headers["x-content-type-options"]
    assert answer.headers["content-security-policy"] == sound.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_a_database_that_takes_no_writes_is_no_bug(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 1)
    with served(open_app(f"{database_url}&options=-c%20default_transaction_read_only%3Don")) as address:
        answer = httpx.post(f"{address}/api/jobs/{job}/pause")
    assert (answer.status_code, answer.json()["detail"].split(":")[0]) == (503, "the database can only be read")


def test_a_role_that_may_only_read_is_no_bug(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 1)
    with (
        clerk(conn, "USAGE ON SCHEMA callboard", "SELECT ON ALL TABLES IN SCHEMA callboard") as role,
        served(open_app(as_role(database_url, role))) as address,
    ):
        shown, answer = httpx.get(f"{address}/api/jobs/{job}"), httpx.post(f"{address}/api/jobs/{job}/pause")
    assert (shown.status_code, answer.status_code) == (200, 503)
    assert answer.json()["detail"] == (
        "the database refuses this user: permission denied for table jobs; give it the right, or use another user"
    )


def test_a_full_disk_is_no_database_that_cant_be_reached() -> None:
    answer = asyncio.run(problem_of(None, psycopg.errors.DiskFull("could not extend file")))
    said = json.loads(bytes(answer.body))["detail"]
    assert (answer.status_code, said) == (503, "the disk of the database is full: free space on the disk of PostgreSQL")


def test_a_detail_that_is_no_text_is_shown(database_url: str) -> None:
    def refuses(_request: Request) -> None:
        raise HTTPException(401, {"msg": "by <post>"})  # type: ignore[arg-type]  # as FastAPI's own allows

    page, plain = (
        get(create_app(url=database_url, authenticate=refuses), "/", headers=headers)[0] for headers in (BROWSER, {})
    )
    assert (page.status_code, plain.json()["detail"]) == (401, {"msg": "by <post>"})
    assert "{&#34;msg&#34;: &#34;by &lt;post&gt;&#34;}" in page.text
