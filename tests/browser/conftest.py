"""A browser: the system's Chromium, without a window; and the app, on a database that the tests of a module share."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from callboard.sql.pool import Conn, connect
from tests.support.databases import database, with_database
from tests.support.jobs import let_workers_last
from tests.support.webapp import open_app, served

#: The first has no window to draw: a page takes 0.3 s of processor time in it, and 0.6 s in a whole browser.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(autouse=True)
def lasting_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `let_workers_last`."""
    let_workers_last(monkeypatch)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a module: while it lives an event loop runs in this thread, and asyncio.run() would refuse."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        raise RuntimeError(f"these tests need one of {', '.join(NAMES)}: install the package chromium-headless-shell")
    expect.set_options(timeout=300_000)
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def shared_url(postgres_url: str, template: str) -> Iterator[str]:
    """The URL of a migrated database of this module's own."""
    with database(postgres_url, template) as name:
        yield with_database(postgres_url, name)


@pytest.fixture(scope="module")
def conn(shared_url: str) -> Iterator[Conn]:
    """A connection to it."""
    with connect(shared_url) as connection:
        yield connection


@pytest.fixture(scope="module")
def address(shared_url: str) -> Iterator[str]:
    """Where the app is."""
    with served(open_app(shared_url)) as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page. A script error or a violation of the page's policy fails the test."""
    # All of a page is on screen, and nothing in it moves all the time, which would be drawn 60 times a second.
    context = browser.new_context(viewport={"width": 1280, "height": 3000}, reduced_motion="reduce")
    context.set_default_timeout(300_000)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
    yield page
    context.close()
    assert not errors


@pytest.fixture
def plain_page(browser: Browser) -> Iterator[Page]:
    """A page without JavaScript."""
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(300_000)
    yield context.new_page()
    context.close()
