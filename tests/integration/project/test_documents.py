"""What the README and the guides have a reader do, done: their files, their commands, compose's web app."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from callboard.commands.services.child_process import Process
from callboard.commands.services.ports import free_ports
from callboard.sql.states import ITEM_STATES
from tests.support import documents, script
from tests.support.databases import database, with_database
from tests.support.paths import ROOT
from tests.support.programs import run
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

BIN = Path(sys.executable).parent
TIMEOUT = 300.0
#: A line of one program in which a shell changes nothing.
PLAIN = re.compile(r"(callboard|python \w+\.py)[\w ./:@-]*")


class Terminal:
    """A folder with the files that the pages show, and a shell in it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment, "PATH": f"{BIN}:{os.environ['PATH']}"}
        for name, text in documents.files().items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line of shell to its end. A plain one is run without a shell, by a fork: see `forked`. Others get an
        interpreter of their own, which shows an import that Callboard lacks.
        """
        words = command.split() if PLAIN.fullmatch(command) else [""]
        if words[0] == "callboard":
            return run(self.folder, *words[1:], env=self.environment)
        if words[0] == "python":
            return run(self.folder, *words[1:], env=self.environment, program=script.PROGRAM)
        shell = ["bash", "-c", command]
        return subprocess.run(
            shell, cwd=self.folder, env=self.environment, text=True, capture_output=True, timeout=TIMEOUT, check=False
        )

    def printed(self, command: str) -> list[str]:
        """The lines that a command prints; it exits with 0."""
        done = self.run(command)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    @contextmanager
    def started(self, command: str, ready: str) -> Iterator[Process]:
        """Run in the background a line that names one program, once it has said `ready`."""
        variables, words = words_of(command)
        log = self.folder / f"{words[0]}-{len([*self.folder.glob('*.log')])}.log"
        environment = {**self.environment, **variables, "PYTHONUNBUFFERED": "1"}
        process = Process([BIN / words[0], *words[1:]], log=log, env=environment, cwd=self.folder)
        process.start().wait_ready(lambda: ready in log.read_text(encoding="utf-8"), TIMEOUT)
        try:
            yield process
        finally:
            code = process.stop(TIMEOUT)
        # uvicorn and a plain script leave a signal its effect.
        assert code in (0, -signal.SIGTERM), log.read_text(encoding="utf-8")


def words_of(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables that a shell line sets for its program, and the program with its arguments."""
    variables, words = {}, shlex.split(command, comments=True)
    while "=" in words[0]:
        name, _, variables[name] = words.pop(0).partition("=")
    return variables, words


def line(with_: str) -> str:
    """The line of the shell blocks that begins so; several pages may have it."""
    [found] = {line for line in documents.lines() if line.startswith(with_)}
    return found


@pytest.fixture(scope="module")
def terminal(
    postgres_url: str, template: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terminal]:
    """A terminal on a database and a virtual host that the tests here share."""
    folder = tmp_path_factory.mktemp("reader")
    with database(postgres_url, template) as name, broker.vhost() as amqp_url:
        yield Terminal(folder, {"DATABASE_URL": with_database(postgres_url, name), "AMQP_URL": amqp_url})


@pytest.fixture(scope="module")
def web(terminal: Terminal) -> Iterator[httpx.Client]:
    """The web app of one `callboard up` with the modules and the variables of every page that starts one."""
    started = [words_of(line) for line in documents.lines() if re.search(r"\w callboard up$", line)]
    modules = {name for variables, _ in started for name in variables["CALLBOARD_ACTORS"].split(",")}
    assert {f"{module}.py" for module in modules} <= documents.files().keys()
    variables = {name: value for more, _ in started for name, value in more.items()}
    variables["CALLBOARD_WEBHOOK_SECRET"] = secret()
    variables["CALLBOARD_ACTORS"] = ",".join(sorted(modules))
    command = f"{shlex.join(f'{name}={value}' for name, value in variables.items())} callboard up --processes 1"
    with terminal.started(command, "Ctrl-C stops everything"):
        up = json.loads((terminal.folder / ".callboard" / "up.json").read_text(encoding="utf-8"))
        [token] = terminal.printed("callboard token create")
        with httpx.Client(base_url=up["web_url"], headers={"Authorization": f"Bearer {token}"}) as client:
            yield client
    assert terminal.run("callboard verify").returncode == 0


def test_the_first_actor(terminal: Terminal, web: httpx.Client) -> None:
    """Submitted from the command line, then from Python; each word ends as the README says."""
    [job, *_] = terminal.printed(documents.block("sh", "submit count_letters -"))
    status = web.get(f"api/jobs/{job}").json()
    assert (status["name"], status["total"], status["succeeded"], status["skipped"]) == ("three words", 3, 2, 1)
    assert status["retries"] == 1
    printed = terminal.printed("python submit.py")
    skipped = range(0, 1000, 250)
    assert printed == [str(1000 - len(skipped)), *(f"{number} an empty word" for number in skipped)]
    assert terminal.printed("python submit.py") == printed, "the same key gives the same job"


def test_coming_from_elsewhere(terminal: Terminal, web: httpx.Client) -> None:
    with psycopg.connect(terminal.environment["DATABASE_URL"], autocommit=True) as conn:
        for name in ("from_fastapi", "from_celery", "from_a_table"):
            table = f"import {name} as m; print(getattr(m, 'TABLE', 'SELECT 1'))"
            [statement] = terminal.printed(f'python -c "{table}"')
            conn.execute(statement)
            [job] = terminal.printed(f'python -c "import {name}; print({name}.start())"')
            assert terminal.run(f"callboard watch {job}").returncode == 0
            status = web.get(f"api/jobs/{job}").json()
            assert (status["state"], status["succeeded"]) == ("completed", 20), status
        assert conn.execute("SELECT count(*) FROM prices").fetchone() == (20,)


def test_coming_from_fastapi(terminal: Terminal, web: httpx.Client) -> None:
    """Its endpoint submits a job, and the app mounted in it tells how far the job is."""
    port = str(free_ports(1)[0])
    command = line("uvicorn ads_app:app").replace("8002", port)
    with terminal.started(command, "Uvicorn running on"):
        mine = f"http://127.0.0.1:{port}"
        job = httpx.post(f"{mine}/ads", json=[*range(20)]).json()["job"]
        assert terminal.run(f"callboard watch {job}").returncode == 0
        seen = f"{mine}/callboard/api/v1/jobs/{job}"
        assert httpx.get(seen).status_code == 401
        assert httpx.get(seen, headers=web.headers).json()["succeeded"] == 20


DJANGO_SETTINGS = """
import os

SECRET_KEY = "of a test"
INSTALLED_APPS = ["django_dramatiq", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.rabbitmq.RabbitmqBroker",
    "OPTIONS": {"url": os.environ["AMQP_URL"]},
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit", "dramatiq.middleware.TimeLimit", "dramatiq.middleware.Callbacks",
        "dramatiq.middleware.Retries", "django_dramatiq.middleware.DbConnectionsMiddleware",
    ],
}
"""
DJANGO_TASKS = """
import dramatiq


@dramatiq.actor
def parcel(number: int) -> int:
    return number
"""
DJANGO_SENDS = """
import django

django.setup()
from shop.tasks import parcel

for number in range(20):
    parcel.send(number)
"""


def test_coming_from_django_dramatiq(terminal: Terminal, web: httpx.Client) -> None:
    (terminal.folder / "shop" / "__init__.py").touch()
    for name, text in (("of_django", DJANGO_SETTINGS), ("shop/tasks", DJANGO_TASKS), ("sends", DJANGO_SENDS)):
        (terminal.folder / f"{name}.py").write_text(text, encoding="utf-8")
    settings = "PYTHONPATH=. DJANGO_SETTINGS_MODULE=of_django"
    workers = f"{settings} django-admin rundramatiq --processes 1 --threads 2"
    with terminal.started(workers, "Worker process is ready for action"):
        terminal.printed(f"{settings} python sends.py")

        def done() -> bool:
            found = web.get("api/jobs?name=parcel").json()["jobs"]
            return [(job["total"], job["succeeded"]) for job in found] == [(20, 20)]

        assert wait_until(done, TIMEOUT, pause=0.2)


def test_jobs_and_control(terminal: Terminal, web: httpx.Client) -> None:
    assert terminal.printed("python many_ways.py") == ["1000", "completed"]

    def plain_sends_are_done() -> bool:
        found = web.get("api/jobs?name=count_letters").json()["jobs"]
        return [job["succeeded"] for job in found] == [2]

    assert wait_until(plain_sends_are_done, TIMEOUT, pause=0.2)
    paused, resumed, cancelled, again, history = terminal.printed("python control.py")
    assert (paused, cancelled, again) == ("paused", "cancelled wrong file", "True completed")
    assert resumed in ("pending", "running")
    assert history == "['retry', 'cancel', 'resume', 'limit', 'pause']"
    assert terminal.printed("python look.py") == ["completed 1 1 1", "[3]", "['TypeError']"]


def test_commands(terminal: Terminal, web: httpx.Client) -> None:
    printed = terminal.printed(documents.block("sh", "words.csv"))
    assert any("3 succeeded" in text for text in printed)


def test_saving_results(terminal: Terminal, web: httpx.Client) -> None:
    printed = terminal.printed("python run_scores.py")
    error = 'invalid input syntax for type date: "no day"'
    assert printed == ["3 succeeded, 1 failed", "[('ACME', 40), ('INITECH', 70)]", error]
    text = " ".join(documents.PAGES["docs/saving-results.md"].split())
    assert all(f"`{said}`" in text for said in (printed[0], error))
    terminal.printed("callboard purge")
    with psycopg.connect(terminal.environment["DATABASE_URL"]) as conn:
        assert wait_until(lambda: conn.execute("SELECT count(*) FROM scores").fetchone() == (0,), TIMEOUT, pause=0.2)


def test_stages(terminal: Terminal, web: httpx.Client) -> None:
    done = ["generate 1 of 1", "ask 6 of 6", "analyse 6 of 6", "score 1 of 1"]
    assert terminal.printed("python run_audit.py") == done
    assert all(f"`{text}`" in documents.PAGES["docs/stages.md"] for text in done)
    [job] = json.loads("".join(terminal.printed("callboard jobs Acme --json")))["jobs"]
    items = terminal.printed(shown("callboard items STAGE").replace("STAGE", str(job["stages"][1]["job"])))
    assert sum("succeeded" in text for text in items) == 6


def test_callbacks(terminal: Terminal, web: httpx.Client) -> None:
    """The receiver and the script of the page, on another port."""
    port = str(free_ports(1)[0])
    script = terminal.folder / "report.py"
    script.write_text(documents.files()["report.py"].replace("8099", port), encoding="utf-8")
    command = f"CALLBOARD_WEBHOOK_SECRET={secret()} {line('python receiver.py')}".replace("8099", port)
    with terminal.started(command, "") as receiver:
        [job] = terminal.printed("python report.py")
        called = f"api/jobs/{job}/callbacks"

        def delivered() -> bool:
            return [one["state"] for one in web.get(called).json()["callbacks"]] == ["delivered"] * 2

        assert wait_until(delivered, TIMEOUT, pause=0.2), web.get(called).json()
        # The receiver prints once it has answered, so "delivered" may be there before the line is.
        line_of_job = "words with a report completed"
        assert wait_until(lambda: line_of_job in receiver.log.read_text(encoding="utf-8"), TIMEOUT)
    reports = "api/jobs?actor=send_report"
    assert wait_until(lambda: [j["succeeded"] for j in web.get(reports).json()["jobs"]] == [1], TIMEOUT)


def secret() -> str:
    """The secret that the page of callbacks exports."""
    return line("export CALLBOARD_WEBHOOK_SECRET=").partition("=")[2]


def test_the_api(terminal: Terminal, web: httpx.Client) -> None:
    terminal.printed(documents.block("sh", "submit count_letters -"))
    printed = terminal.printed(
        documents.block("sh", "python over_http.py").replace("http://127.0.0.1:8000", str(web.base_url))
    )
    assert printed == ["three words completed 2 of 3", "2 skipped an empty word", "retry 1"]
    [job] = web.get("api/jobs?limit=1").json()["jobs"]
    with without_events(job) as address:
        for url in (f"{web.base_url}api/v1/jobs/{job['id']}", address):
            lines = terminal.printed(f"{line('export TOKEN=')} && python follow.py {url}")
            assert lines[-1] == "completed 2 of 3"
    assert set(documents.first_column("field")) == set(job)
    assert sum(job[state] for state in ITEM_STATES) == job["total"]


@contextmanager
def without_events(job: dict[str, Any]) -> Iterator[str]:
    """A server that has a job, which ends after the first answer, and no events."""
    states = iter([{**job, "finished_at": None}, job])

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            has_none = self.path.endswith("/events")
            self.send_response(503 if has_none else 200)
            self.end_headers()
            self.wfile.write(b"" if has_none else json.dumps(next(states)).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/job"
        server.shutdown()
        thread.join()


def test_how_it_works(terminal: Terminal, web: httpx.Client) -> None:
    terminal.printed(documents.block("sh", "submit count_letters -"))
    printed = terminal.printed("python rows.py")
    assert printed[printed.index("three words 3 2 1 1") :][:4] == [
        "three words 3 2 1 1",
        "  item 0: succeeded, attempt 1",
        "  item 1: succeeded, attempt 2",
        "  item 2: skipped, attempt 1",
    ]


def shown(text: str) -> str:
    """A command that a page names in its prose."""
    assert f"`{text}`" in documents.TEXT
    return text


def test_an_existing_app(environment: dict[str, str], tmp_path: Path) -> None:
    """The app with the one line: its worker, its script, and what the page shows of it."""
    terminal = Terminal(tmp_path, environment)
    terminal.printed(line("callboard migrate"))
    with terminal.started(line("dramatiq app"), "Worker process is ready for action."):
        terminal.printed(line("python app.py"))

        def done() -> bool:
            jobs = json.loads("".join(terminal.printed("callboard jobs --json")))["jobs"]
            return [(job["name"], job["succeeded"]) for job in jobs] == [("greet", 3)]

        assert wait_until(done, TIMEOUT, pause=0.2)
    terminal.printed(line("callboard verify"))


def test_the_page_in_another_app(terminal: Terminal) -> None:
    port = str(free_ports(1)[0])
    with terminal.started(line("uvicorn mounted:app").replace("8001", port), "Uvicorn running on"):
        jobs = f"http://127.0.0.1:{port}/callboard/api/jobs"
        assert httpx.get(jobs).status_code == 401
        assert httpx.get(jobs, headers={"Authorization": "Bearer change-me"}).status_code == 200


def test_the_web_app_of_compose_starts_and_knows_its_names(terminal: Terminal) -> None:
    """As its container has it, on another port."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    command = [word.replace("--port=8000", "--port=0") for word in compose["services"]["web"]["command"]]
    made = line("docker compose run --rm web callboard token create").removeprefix("docker compose run --rm web ")
    token = terminal.printed(made)[-1]
    with terminal.started(shlex.join(command), "Callboard is at ") as process:
        log = process.log.read_text(encoding="utf-8")
        port = re.findall(r":(\d+)/", log)[0]
        jobs = f"http://127.0.0.1:{port}/api/jobs"
        login = {"Authorization": f"Bearer {token}"}
        names = {"localhost:8000": 200, "127.0.0.1": 200, "elsewhere.example": 421}
        answers = {name: httpx.get(jobs, headers={**login, "Host": name}).status_code for name in names}
        assert answers == names
        assert httpx.get(jobs).status_code == 401
