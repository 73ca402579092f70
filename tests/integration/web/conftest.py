"""What the tests of the web app share."""

import pytest
from starlette.applications import Starlette

from callboard.web import events
from tests.support.webapp import open_app


@pytest.fixture(autouse=True)
def streams_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of events ends with its first one, but where it is tried: a client in process waits for its end."""
    if request.path.stem != "test_events":
        monkeypatch.setattr(events, "_server_stops", lambda: True)


@pytest.fixture
def app(database_url: str) -> Starlette:
    """The app on this test's database, open to everyone."""
    return open_app(database_url)
