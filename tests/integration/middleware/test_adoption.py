"""An app without Callboard adopts it with messages in its queues, and gives it up again."""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pika
import psycopg

from callboard.commands.services.ports import free_ports
from callboard.sql.pool import connect
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES
from tests.support import documents, script
from tests.support.forked import CALLBOARD
from tests.support.programs import run, running
from tests.support.workers import StartWorker, wait_until

TIMEOUT = 300.0

#: The app as it was. `odd` fails for good, and `later` succeeds when it is tried again.
APP = """
import os
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

broker = RabbitmqBroker(url=os.environ["AMQP_URL"])
dramatiq.set_broker(broker)


def write(line):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{line}\\n")


@dramatiq.actor
def note(number):
    time.sleep(0.005)
    write(f"note {number}")


@dramatiq.actor(queue_name="odd", max_retries=0)
def odd(number):
    write(f"odd {number}")
    raise ValueError(f"{number} is odd")


@dramatiq.actor(queue_name="later", max_retries=3, min_backoff=50, max_backoff=100)
def later(number):
    with open(os.environ["NOTES"]) as notes:
        tried = f"later {number}\\n" in notes
    write(f"later {number}")
    if not tried:
        raise OSError("not yet")
"""

#: The script that sends: so many notes, and of the others one each ten.
SEND = """
import sys

import app

first, end = int(sys.argv[1]), int(sys.argv[2])
for number in range(first, end):
    app.note.send(number)
    if number % 10 == 0:
        app.odd.send(number)
        app.later.send(number)
"""

BROKER = 'broker = RabbitmqBroker(url=os.environ["AMQP_URL"])\n'
#: Either way of the README: one line more, or another broker instead of Dramatiq's.
INSTALL = BROKER + "import callboard\ncallboard.install(broker)\n"
DROP_IN = 'import callboard\nbroker = callboard.RabbitmqBroker(url=os.environ["AMQP_URL"])\n'


class App:
    """The app in its folder, its queues, and what its actors wrote down."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.notes = folder / "notes.txt"
        self.notes.touch()
        self.variables = {**environment, "NOTES": str(self.notes), "PYTHONPATH": str(folder)}
        (folder / "send.py").write_text(SEND, encoding="utf-8")
        self.write(APP)

    def write(self, source: str) -> None:
        """Have this source from now on. As the app was, its processes have not imported Callboard: see `forked`."""
        (self.folder / "app.py").write_text(source, encoding="utf-8")
        self.variables.pop("PYTHONHASHSEED", None)
        if source is APP:
            self.variables["PYTHONHASHSEED"] = "0"

    def run(self, *command: str, program: str = CALLBOARD) -> str:
        """Run a command, or another program, to its end; what it printed."""
        done = run(self.folder, *command, env=self.variables, program=program)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def send(self, first: int, end: int) -> None:
        self.run("send.py", str(first), str(end), program=script.PROGRAM)

    def noted(self) -> set[str]:
        return set(self.notes.read_text(encoding="utf-8").splitlines())

    def queued(self) -> Counter[str]:
        """Messages ready in RabbitMQ, by actor; those that wait for a retry too."""
        connection = pika.BlockingConnection(pika.URLParameters(self.variables["AMQP_URL"]))
        channel = connection.channel()
        found: Counter[str] = Counter()
        for actor, queue in {"note": "default", "odd": "odd", "later": "later"}.items():
            for name in (queue, f"{queue}.DQ"):
                found[actor] += channel.queue_declare(name, passive=True).method.message_count
        connection.close()
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The jobs as they are on record."""
        with connect(self.variables["DATABASE_URL"]) as conn:
            return queries.run(conn, queries.jobs())[0]

    def nothing_waits_as_rows(self) -> bool:
        return all(job["pending"] == job["retrying"] == 0 for job in self.rows())

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs as the command line gives them."""
        return list(json.loads(self.run("jobs", "--json"))["jobs"])


def counted(jobs: Iterable[Mapping[str, Any]], *states: str) -> Counter[str]:
    """Items in these states, by actor. The plain sends of an actor are a job a day, and midnight may come meanwhile."""
    found: Counter[str] = Counter()
    for job in jobs:
        found[job["actor"]] += sum(job[state] for state in states)
    return found


def sent(first: int, end: int) -> Counter[str]:
    tens = sum(number % 10 == 0 for number in range(first, end))
    return Counter(note=end - first, odd=tens, later=tens)


def lines(first: int, end: int) -> set[str]:
    """What is in the notes when everything sent was processed."""
    others = {f"{actor} {n}" for actor in ("odd", "later") for n in range(first, end) if n % 10 == 0}
    return {f"note {n}" for n in range(first, end)} | others


@contextmanager
def served(app: App) -> Iterator[Callable[[str], Any]]:
    """`callboard serve` in a process of its own; gives a function that GETs a path as JSON."""
    port = free_ports(1)[0]

    def get(path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=300) as answer:
            return json.load(answer)

    with running(app.folder, "serve", "--open-to-everyone", "--port", str(port), env=app.variables):
        yield get


@contextmanager
def swept(app: App) -> Iterator[None]:
    """The README's `callboard sweep`, in a process of its own."""
    [line] = [line for line in documents.block("sh", "callboard sweep").splitlines() if "sweep" in line]
    variable, *command = shlex.split(line, comments=True)
    name, _, value = variable.partition("=")
    assert command.pop(0) == "callboard"
    with running(app.folder, *command, env={**app.variables, name: value}, until="sweeping") as process:
        yield
        assert process.stop(TIMEOUT) == 0


def assert_over_http(app: App, expected: Counter[str]) -> None:
    """The web app tells how the items of each actor ended."""
    with served(app) as get:
        jobs = [get(f"/api/jobs/{job['id']}") for job in get("/api/jobs")["jobs"]]
        assert counted(jobs, "failed") == Counter(odd=expected["odd"])
        assert counted(jobs, "succeeded") == expected - counted(jobs, "failed")
        errors: Counter[str] = Counter()
        for job in jobs:
            for error in get(f"/api/jobs/{job['id']}/errors")["errors"] if job["actor"] == "odd" else ():
                errors[error["type"]] += error["count"]
        assert errors == Counter(ValueError=expected["odd"])


def test_an_app_adopts_callboard_either_way_and_gives_it_up_again(
    empty_database_url: str, amqp_url: str, worker: StartWorker, tmp_path: Path
) -> None:
    app = App(tmp_path, {"DATABASE_URL": empty_database_url, "AMQP_URL": amqp_url})
    assert "callboard.install(broker)" in documents.TEXT
    assert "callboard.RabbitmqBroker(url=…)" in documents.TEXT

    # As it was: it works, is stopped in the middle as by a deploy, and more is sent meanwhile.
    app.send(0, 300)
    stock = worker("app", env=app.variables)
    assert wait_until(lambda: len(app.noted()) > 50, TIMEOUT)
    stock.stop()
    app.send(300, 400)
    before = app.queued()
    assert before["note"] >= 100

    # Taken up: what was queued is counted with what is sent from now on.
    app.write(APP.replace(BROKER, INSTALL))
    app.run("migrate")
    app.send(400, 500)
    tracked = worker("app", env=app.variables)
    expected = before + sent(400, 500)

    def all_done() -> bool:
        return counted(app.rows(), "succeeded", "failed") == expected

    assert wait_until(all_done, TIMEOUT, pause=0.2), app.jobs()
    assert app.noted() == lines(0, 500)
    assert_over_http(app, expected)

    # The other way, with messages in the queue of the app as it was.
    tracked.stop()
    app.write(APP)
    app.send(500, 600)
    assert app.queued()["note"] == 100
    app.write(APP.replace(BROKER, DROP_IN))
    app.send(600, 700)
    tracked = worker("app", env=app.variables)
    expected += sent(500, 700)
    assert wait_until(all_done, TIMEOUT, pause=0.2), app.jobs()
    assert app.noted() == lines(0, 700)
    assert counted(app.jobs(), *ITEM_STATES) == counted(app.jobs(), "total") == expected
    app.run("verify")

    # Laid down in the middle: `callboard sweep` brings onto RabbitMQ what waits as rows, the stock app does the rest.
    app.send(700, 1000)
    numbers = "".join(f"{number}\n" for number in range(1000, 1400))
    (tmp_path / "numbers.jsonl").write_text(numbers, encoding="ascii")
    assert wait_until(lambda: len(app.noted() & lines(700, 1000)) > 30, TIMEOUT)
    tracked.stop()
    app.run("submit", "note", "numbers.jsonl")
    assert not app.nothing_waits_as_rows()
    with swept(app):
        assert wait_until(app.nothing_waits_as_rows, TIMEOUT, pause=0.2), app.jobs()
    app.write(APP)
    assert app.queued()["note"] > 0
    worker("app", env=app.variables)
    everything = lines(0, 1000) | {f"note {number}" for number in range(1000, 1400)}
    assert wait_until(lambda: app.noted() == everything and not app.queued().total(), TIMEOUT, pause=0.2)
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("DROP SCHEMA callboard CASCADE")
    app.send(2000, 2010)
    assert wait_until(lambda: app.noted() == everything | lines(2000, 2010), TIMEOUT)
