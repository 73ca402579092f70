"""Processes that are forked from one that has imported what they need."""

import os
import signal
import sys
from pathlib import Path

from tests.support.forked import ForkedProcess


def test_a_process_is_killed_as_soon_as_it_is_started(tmp_path: Path) -> None:
    """It must have a group by then, which the signal goes to."""
    (tmp_path / "waits.py").write_text("import signal\nsignal.pause()")
    command = [sys.executable, "-m", "tests.support.script", str(tmp_path / "waits.py")]
    process = ForkedProcess(command, log=tmp_path / "log", env=dict(os.environ)).start()
    assert process.kill() == -signal.SIGKILL
