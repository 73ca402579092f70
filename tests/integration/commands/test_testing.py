"""The pytest plug-in `callboard.testing`, as an app's tests use it, in a pytest of their own."""

import subprocess
import sys
from pathlib import Path

from tests.support import documents
from tests.support.paths import ROOT
from tests.support.programs import environment

OWN_BROKER = """
import os
import callboard, dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

broker = RabbitmqBroker(url="amqp://127.0.0.1:1")
dramatiq.set_broker(broker)
callboard.install(broker)


@dramatiq.actor
def parent(children):
    for number in range(children):
        child.send(number)


@dramatiq.actor(max_retries=0)
def child(number):
    callboard.step("at work")
    return number


def test_children_belong_to_the_job(callboard_worker):
    done = callboard_worker.run(parent, [3])
    assert sorted(result for result in done.results if result is not None) == [0, 1, 2]
    assert child.broker is not broker


def test_the_broker_is_the_apps_again_and_a_second_worker_works(callboard_worker):
    assert callboard_worker.run(child, [1]).results == [1]


def test_a_job_that_does_not_end_is_shown(callboard_worker):
    try:
        callboard_worker.run(child, [1], delay="1h", timeout=0.2)
    except TimeoutError as error:
        assert "has not ended after 0.2 s: {'id'" in str(error)
    else:
        assert False


def teardown_module():
    assert child.broker is broker and dramatiq.get_broker() is broker
    assert "production" not in os.environ["DATABASE_URL"]
"""


LATE = """
import os

import dramatiq
from callboard.sql.pool import connect
from callboard.sql.writes.workers import exclude_tests

import shop


def test_an_actor_that_is_declared_late_runs_and_no_earlier_worker_takes_its_messages(callboard_worker):
    late = dramatiq.actor(shop.charge.fn, actor_name="late", queue_name="late")
    assert callboard_worker.run(late, range(20)).results == [f"charged {n}" if n != 13 else None for n in range(20)]


def test_join_raises_no_failure_of_an_earlier_test(callboard_worker):
    assert callboard_worker.run(shop.charge, [-1]).status["failed"] == 1


def test_join_raises_no_failure_of_an_earlier_test_here(callboard_worker):
    shop.charge.send(1)
    dramatiq.get_broker().join("default")


def test_no_other_process_of_the_tests_has_a_worker_meanwhile(callboard_worker):
    with connect(os.environ["DATABASE_URL"]) as conn:
        assert not exclude_tests(conn)
        assert conn.execute("SELECT count(*) FROM callboard.actors WHERE name = 'callboard.ping'").fetchone() == (0,)
"""

#: The `conftest.py` of an app whose broker is one in this process, on the database that the environment names.
EARLY = """
import callboard, dramatiq
from dramatiq.brokers.stub import StubBroker

broker = StubBroker()
callboard.install(broker)
dramatiq.set_broker(broker)

pytest_plugins = ["callboard.testing"]
"""


WITHIN_TESTS = """
import time

import callboard
import dramatiq
import pytest
from conftest import broker


@pytest.mark.parametrize("number", [1, 2])
def test_an_actor_runs_that_the_first_of_these_tests_imports(callboard_worker, number):
    from imported import double
    assert callboard_worker.run(double, [number]).results == [2 * number]


def test_it_is_the_apps_again():
    from imported import double
    assert double.broker is broker is dramatiq.get_broker() and broker.actors["double"] is double
    assert "callboard.ping" not in broker.actors


@dramatiq.actor(time_limit=10, max_retries=0)
def long():
    for _ in range(6_000):
        time.sleep(0.01)


@pytest.mark.parametrize("number", [1, 2])
def test_a_time_limit_strikes(callboard_worker, number):
    assert callboard_worker.run(long, [[]]).errors[0]["type"].endswith("TimeLimitExceeded")


@pytest.fixture
def no_broker(monkeypatch):
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)


def test_an_actor_runs_of_an_app_that_the_test_imports(no_broker, callboard_worker):
    callboard.install()
    triple = dramatiq.actor(lambda number: 3 * number, actor_name="triple")
    assert callboard_worker.run(triple, [1]).results == [3]


def test_a_broker_that_the_test_has_the_app_make_is_named(no_broker, callboard_worker):
    dramatiq.set_broker(own := dramatiq.brokers.stub.StubBroker())
    late = dramatiq.actor(print, actor_name="late")
    with pytest.raises(RuntimeError, match="late has a broker that was made after callboard_worker started: import"):
        callboard_worker.run(late, [1])
"""


#: A plug-in. On a busy machine a job may take longer than an app's tests wait.
PATIENT = """
def pytest_collection_finish():
    from callboard.testing import CallboardWorker

    for wait in (CallboardWorker.run, CallboardWorker.wait):
        wait.__kwdefaults__["timeout"] = 300.0
"""


def run_pytest(folder: Path, *options: str) -> str:
    """What it says; every test passes."""
    (folder / "patient.py").write_text(PATIENT)
    production = {"DATABASE_URL": "postgresql://127.0.0.1:1/production", "AMQP_URL": "amqp://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "patient", *options],
        check=False, cwd=folder, env=environment(production), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_files_of_the_guide_pass(tmp_path: Path) -> None:
    for name in ("conftest.py", "shop.py", "test_shop.py", "scores.py", "test_scores.py"):
        (tmp_path / name).write_text(documents.files()[name])
    (tmp_path / "test_zz_late.py").write_text(LATE)
    assert "8 passed" in run_pytest(tmp_path)


def test_the_five_pipelines_are_tested_in_process(tmp_path: Path, empty_database_url: str) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["callboard.testing"]\n')
    tests = (ROOT / "tests/pipelines/in_process.py").read_text()
    (tmp_path / "test_pipelines.py").write_text(tests)
    assert "5 passed" in run_pytest(tmp_path, "--callboard-database", empty_database_url)


def test_an_app_with_a_broker_of_its_own_is_run_in_process(tmp_path: Path, empty_database_url: str) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["callboard.testing"]\n')
    (tmp_path / "test_app.py").write_text(OWN_BROKER)
    assert "3 passed" in run_pytest(tmp_path, "--callboard-database", empty_database_url)


def test_an_app_that_is_imported_before_the_plug_in_or_by_a_test_is_run_on_the_tests_database(
    tmp_path: Path, empty_database_url: str
) -> None:
    (tmp_path / "conftest.py").write_text(EARLY)
    module = "import dramatiq\n\ndouble = dramatiq.actor(lambda number: 2 * number, actor_name='double')\n"
    (tmp_path / "imported.py").write_text(module)
    (tmp_path / "test_app.py").write_text(WITHIN_TESTS)
    assert "7 passed" in run_pytest(tmp_path, "--callboard-database", empty_database_url)
