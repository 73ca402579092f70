"""The folder into which processes write what they count."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from callboard.middleware.journal import metrics
from callboard.sql.settings import NotConfigured


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(metrics.FOLDER, "")  # so that what is set here is taken away again
    monkeypatch.delenv(metrics.FOLDER)


def test_processes_share_a_folder_that_only_their_user_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._set_folder(None, 9000)
    first = os.environ[metrics.FOLDER]
    monkeypatch.delenv(metrics.FOLDER)
    metrics._set_folder(None, 9000)
    assert os.environ[metrics.FOLDER] == first
    assert Path(first).stat().st_mode & 0o777 == 0o700


def test_a_folder_that_somebody_else_made_or_a_link_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"callboard-metrics-9000-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotConfigured, match=f"{name} is not a folder of this user"):
        metrics._set_folder(None, 9000)
    monkeypatch.setattr(os, "getuid", lambda: 12_345)  # the folder that is made here is of another user than this one
    with pytest.raises(NotConfigured, match="9000-12345 is not a folder of this user"):
        metrics._set_folder(None, 9000)


def test_a_port_in_use_is_named_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process that serves the metrics ended with a traceback, which named neither."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("CALLBOARD_METRICS_PORT", str(port))
        assert metrics.serve() == 1
    (said,) = caplog.messages
    assert said.startswith(f"no metrics are served: CALLBOARD_METRICS_PORT={port} can't be used: ")
