"""What the tests of statements share."""

import pytest

from callboard.sql import timings


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a statement that must wait for another may wait for long."""
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 60.0)
    monkeypatch.setattr(timings, "ACTION_LOCK_WAIT_SECONDS", 60.0)
