"""A worker whose settings make no sense says so in one line and takes no message."""

from pathlib import Path

import pytest

from callboard.commands.services import wait_until
from tests.support.workers import Worker

NOWHERE = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "AMQP_URL": ""}


@pytest.mark.parametrize(("name", "value"), [("CALLBOARD_HUNG_AFTER", "60s"), ("CALLBOARD_RESULT_LIMIT", "abc")])
def test_a_worker_refuses_nonsense_at_its_start(name: str, value: str, tmp_path: Path) -> None:
    env = {**NOWHERE, name: value}
    worker = Worker(["callboard.actors"], tmp_path / "worker.log", env=env, threads=1)
    worker.begin()
    assert wait_until(lambda: not worker.process.running(), 300)
    assert worker.process.kill() != 0
    lines = [line for line in worker.output.splitlines() if name in line]
    assert len(lines) == 1, worker.output
    assert f"{name} must be " in lines[0]
    assert repr(value) in lines[0]
    assert "Traceback" not in worker.output
