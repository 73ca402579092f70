"""The login in a real browser: by a link, by a token, without JavaScript, under a prefix, and out again."""

import re

import pytest
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from callboard.sql.pool import Conn
from callboard.sql.writes import tokens
from callboard.sql.writes.requests import Requester
from callboard.web import create_app
from tests.support.jobs import make_job
from tests.support.webapp import served
from tests.support.workers import wait_until

ANNA = Requester("cli", "anna")


@pytest.mark.parametrize(("script", "prefix"), [("page", ""), ("plain_page", "/in/side")])
def test_a_browser_logs_in_and_out(
    request: pytest.FixtureRequest, conn: Conn, shared_url: str, script: str, prefix: str
) -> None:
    page: Page = request.getfixturevalue(script)
    job = make_job(conn, 1, name="Autumn ads")
    secret, _ = tokens.create(conn, ANNA, name="anna", scopes=["read", "control", "admin"])
    link, _ = tokens.create(conn, ANNA, name="bert", kind="link")
    app = create_app(url=shared_url)
    with served(Starlette(routes=[Mount(prefix, app)]) if prefix else app) as address:
        page.goto(f"{address}{prefix}/jobs/{job}")
        page.get_by_label("Token").fill("cb_wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("not valid")
        page.get_by_label("Token").fill(secret)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{address}{prefix}/jobs/{job}")
        expect(page).to_have_title(re.compile("Autumn ads"))
        expect(page.get_by_text("anna", exact=True).first).to_be_visible()
        page.set_viewport_size({"width": 320, "height": 740})
        pages = page.get_by_role("navigation", name="Pages")
        expect(pages.get_by_role("link")).to_have_text(["Jobs", "Workers", "Queues", "API", "Tokens"])
        assert pages.evaluate("all => all.scrollWidth <= all.clientWidth")

        page.get_by_role("button", name="Log out").click()
        expect(page).to_have_url(f"{address}{prefix}/login")
        page.goto(f"{address}{prefix}/login?link={link}")
        expect(page).to_have_url(f"{address}{prefix}/")
        expect(page.get_by_text("bert", exact=True)).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        page.goto(f"{address}{prefix}/login?link={link}")
        expect(page.get_by_role("alert")).to_contain_text("already used")

        page.goto(f"{address}{prefix}/jobs/{job}")
        expect(page.get_by_role("alert")).to_have_count(0)
        page.get_by_label("Token").fill(secret)
        page.keyboard.press("Enter")
        expect(page).to_have_title(re.compile("Autumn ads"))
        conn.execute("UPDATE callboard.tokens SET revoked_at = now() WHERE kind = 'session'")
        if script == "plain_page":
            assert wait_until(lambda: page.reload() is not None and "Log in" in page.title(), 300)
        expect(page.get_by_role("alert")).to_contain_text("The login of this browser was revoked")
        page.get_by_label("Token").fill(secret)
        page.keyboard.press("Enter")
        expect(page).to_have_title(re.compile("Autumn ads"))


def test_a_page_of_another_site_uses_no_link_up(page: Page, conn: Conn, shared_url: str) -> None:
    link, _ = tokens.create(conn, ANNA, name="anna", kind="link")
    with served(create_app(url=shared_url)) as address:
        other = address.replace("127.0.0.1", "localhost")
        page.route("http://evil.example/", lambda route: route.fulfill(
            content_type="text/html", body=f'<a href="{other}/login?link={link}">look</a>'))  # fmt: skip
        page.goto("http://evil.example/")
        page.get_by_text("look").click()
        expect(page.get_by_text("This link logs this browser in once.")).to_be_visible()
        page.get_by_role("button", name="Log in").click()
        expect(page).to_have_url(f"{other}/")
