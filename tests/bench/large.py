"""One job of very many items as a user has it, from a file of JSON Lines to its deletion, watched all the while.

`python -m tests.bench.large --items 10000000` prints tables. It needs 10 GB of disk, and an hour on two cores. In the
middle a worker and RabbitMQ are killed; a hundredth of the items fails, and is retried.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import pika
import psycopg
from psycopg.rows import dict_row

from callboard.commands.services import Node, Server
from callboard.commands.services.ports import free_ports
from callboard.sql.migrate import migrate
from tests.bench.watchers import answers
from tests.support.workers import Worker, wait_until

#: As for a server of 8 GB; the rest is as PostgreSQL has it.
SETTINGS = {
    "shared_buffers": "1536MB", "effective_cache_size": "6GB", "maintenance_work_mem": "256MB", "max_wal_size": "4GB",
    "wal_compression": "on", "log_min_duration_statement": "500ms", "log_autovacuum_min_duration": "0",
    "log_lock_waits": "on",
}  # fmt: skip
#: Workers of one process of 8 threads each.
WORKERS = 4
#: Seconds between two looks at pages, processes and tables; seconds that a step may take.
LOOK_SECONDS, STEP_SECONDS = 5.0, 7_200.0

TABLES = """
SELECT relname, pg_table_size(relid) AS size, pg_indexes_size(relid) AS indexes, n_dead_tup AS dead,
       n_tup_upd AS updated, n_tup_hot_upd AS hot, autovacuum_count AS vacuums, autoanalyze_count AS analyses
FROM pg_stat_user_tables WHERE schemaname = 'callboard' AND pg_table_size(relid) > 1e6
"""
JOB = """
SELECT id, state, total, published, succeeded, failed, retrying
FROM callboard.jobs WHERE name = 'very many' ORDER BY id LIMIT 1
"""
SIZES = ("size", "indexes")
PAGES = {
    "page of the job": "/jobs/{job}",
    "job": "/api/v1/jobs/{job}",
    "page of jobs": "/",
    "list of jobs": "/api/v1/jobs",
    "items": "/api/v1/jobs/{job}/items",
    "items in the middle": "/api/v1/jobs/{job}/items?after=items-{middle}",
    "items failed": "/api/v1/jobs/{job}/items?state=failed",
    "items running": "/api/v1/jobs/{job}/items?state=running",
    "items queued": "/api/v1/jobs/{job}/items?state=queued",
    "items pending": "/api/v1/jobs/{job}/items?state=pending",
    "errors": "/api/v1/jobs/{job}/errors",
    "chart": "/api/v1/jobs/{job}/samples",
    "queues": "/api/v1/queues",
    "metrics": "/metrics",
}


class Watch:
    """Looks every few seconds at pages, processes, queue and tables, in a thread, and follows the events of the job."""

    def __init__(self, urls: dict[str, str], web: str, items: int, log: Path) -> None:
        self.urls, self.web, self.middle, self.log = urls, web, items // 2, log
        self.processes: dict[str, Callable[[], list[int]]] = {}
        self.phase, self.job = "", 0
        self.times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.peaks: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._look), threading.Thread(target=self._follow, daemon=True)]
        for thread in self.threads:
            thread.start()

    def _look(self) -> None:
        with httpx.Client(base_url=self.web, timeout=60) as client:
            while not self.stop.wait(LOOK_SECONDS):
                phase = self.phase
                seen: dict[str, Any] = {"at": round(time.time(), 1), "phase": phase}
                with suppress(psycopg.OperationalError):
                    seen |= self._database()
                with suppress(Exception):
                    seen["ready"] = self._depth()
                seen["mib"] = {name: round(resident(pids())) for name, pids in self.processes.items()}
                for name, value in seen["mib"].items():
                    self._note(f"MiB of {name}", value)
                if self.job:
                    seen["ms"] = {name: self._ask(client, phase, name) for name in PAGES}
                with self.log.open("a") as log:
                    print(json.dumps(seen, default=str), file=log)

    def _database(self) -> dict[str, Any]:
        with psycopg.connect(self.urls["DATABASE_URL"], autocommit=True, row_factory=dict_row) as conn:
            tables = {row.pop("relname"): row for row in conn.execute(TABLES)}
            wal = conn.execute("SELECT pg_current_wal_lsn() - '0/0' AS wal").fetchone()
            job = conn.execute(JOB).fetchone()
            busy = conn.execute(
                "SELECT left(query, 60) AS query, round(extract(epoch FROM now() - xact_start), 1) AS seconds,"
                " wait_event FROM pg_stat_activity WHERE now() - xact_start > '1 s' AND pid <> pg_backend_pid()"
            ).fetchall()
        self.job = self.job or (job["id"] if job else 0)
        self._note("dead rows of items, in 1,000", tables.get("items", {}).get("dead", 0) / 1e3)
        self._note("MiB of items and its indexes", sum(tables.get("items", {}).get(n, 0) for n in SIZES) / 2**20)
        return {"wal": int(wal["wal"]) if wal else 0, "job": job, "tables": tables, "long": busy}

    def _note(self, what: str, value: float) -> None:
        self.peaks[what][self.phase] = max(self.peaks[what][self.phase], value)

    def _depth(self) -> int:
        connection = pika.BlockingConnection(pika.URLParameters(self.urls["AMQP_URL"]))
        with connection, connection.channel() as channel:
            return int(channel.queue_declare("default", passive=True).method.message_count)

    def _ask(self, client: httpx.Client, phase: str, name: str) -> float | str:
        began = time.perf_counter()
        try:
            answer = client.get(PAGES[name].format(job=self.job, middle=self.middle))
        except httpx.TransportError as error:
            return repr(error)
        taken = 1_000 * (time.perf_counter() - began)
        if not answer.is_success:
            return f"{answer.status_code} {taken:.0f}"
        self.times[name][phase].append(taken)
        return round(taken, 1)

    def _follow(self) -> None:
        """Note how old each change is when its event comes."""
        while not self.stop.wait(0.5):
            if not self.job:
                continue
            with (
                suppress(httpx.HTTPError),
                httpx.stream("GET", f"{self.web}/api/v1/jobs/{self.job}/events", timeout=60) as answer,
            ):
                before: int | None = None
                for line in answer.iter_lines():
                    told = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                    if "succeeded" in told and told["succeeded"] != before:
                        age = datetime.now(UTC) - datetime.fromisoformat(told["updated_at"])
                        if before is not None:
                            self.times["event"][self.phase].append(1_000 * age.total_seconds())
                        before = told["succeeded"]


def resident(pids: list[int]) -> float:
    """The MiB of memory of these processes that are not mapped files or shared."""
    found = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
            found += next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
    return found / 1024


def _processes(worker: Worker) -> list[int]:
    return descendants(worker.pid)


def descendants(pid: int) -> list[int]:
    """Child processes of a process, and theirs."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, path.read_text(encoding="ascii").split()):
                found += [child, *descendants(child)]
    return found


class Run:
    """The steps of it, each with what it found."""

    def __init__(self, urls: dict[str, str], folder: Path, items: int, watch: Watch, kill_broker: Callable[[], None]):
        self.urls, self.folder, self.items, self.watch, self.kill_broker = urls, folder, items, watch, kill_broker
        self.env = {**os.environ, **urls, "CALLBOARD_ACTORS": "tests.bench.tracked_actors", "NO_COLOR": "1"}
        self.workers = [
            Worker(["tests.bench.tracked_actors"], folder / f"worker-{n}.log", env=urls) for n in range(WORKERS)
        ]

    def command(self, *words: str, **options: Any) -> str:
        """What `callboard …` prints; the peak of its memory is noted."""
        command = [sys.executable, "-m", "callboard.commands.main", *words]
        program = subprocess.Popen(command, env=self.env, text=True, **{"stdout": subprocess.PIPE, **options})
        self.watch.processes["callboard"] = lambda: [program.pid]
        said = program.communicate()[0] or ""
        del self.watch.processes["callboard"]
        if program.returncode:
            raise RuntimeError(f"callboard {' '.join(words)} exited with {program.returncode}: {said}")
        return said

    def query(self, statement: str, *parameters: Any) -> Any:
        with psycopg.connect(self.urls["DATABASE_URL"], autocommit=True) as conn:
            row = conn.execute(statement.encode(), parameters).fetchone()
        return row[0] if row and len(row) == 1 else row

    def submit(self) -> str:
        lines = self.folder / "items.jsonl"
        with lines.open("w", encoding="ascii") as file:
            file.writelines(f'{{"number": {number}}}\n' for number in range(self.items))
        self.watch.job = int(self.command("submit", "fail_some", str(lines), "--name", "very many"))
        return f"{lines.stat().st_size / 2**20:.0f} MiB of JSON Lines"

    def drain(self) -> str:
        """Run all of it; at a third a worker is killed, at two thirds RabbitMQ."""
        for n, worker in enumerate(self.workers):
            worker.begin()
            self.watch.processes[f"worker {n}"] = partial(_processes, worker)
        self._until(self.items // 3)
        self.workers[0].kill()
        self.workers[0].begin()
        self._until(2 * self.items // 3)
        self.kill_broker()
        self._until(self.items)
        return self._counted()

    def retry(self) -> str:
        began = time.monotonic()
        self.command("retry", str(self.watch.job))
        said = f"the command {time.monotonic() - began:.1f} s"
        self._until(self.items)
        return f"{said}; {self._counted()}"

    def verify(self) -> str:
        return self.command("verify", str(self.watch.job)).strip()

    def export(self) -> str:
        with Path(os.devnull).open("w") as nothing:
            self.command("export", str(self.watch.job), stdout=nothing)
        return ""

    def run_again(self) -> str:
        began = time.monotonic()
        other = int(self.command("run-again", str(self.watch.job)))
        said = f"the command {time.monotonic() - began:.1f} s"
        began = time.monotonic()
        self.command("cancel", str(other))
        said += f", cancelled by one of {time.monotonic() - began:.1f} s"
        assert wait_until(
            lambda: self.query("SELECT finished_at IS NOT NULL FROM callboard.jobs WHERE id = %s", other), 600
        )
        self.command("purge", str(other))
        return said

    def delete(self) -> str:
        job = self.watch.job
        began = time.monotonic()
        answer = httpx.delete(f"{self.watch.web}/api/v1/jobs/{job}", timeout=60)
        taken = time.monotonic() - began
        assert answer.is_success, answer.text
        assert httpx.get(f"{self.watch.web}/api/v1/jobs/{job}", timeout=60).status_code == httpx.codes.NOT_FOUND
        assert wait_until(
            lambda: not self.query("SELECT count(*) FROM callboard.jobs WHERE id = %s", job), STEP_SECONDS, pause=1
        )
        gone = time.monotonic() - began
        assert wait_until(self._free, STEP_SECONDS, pause=1)
        free = time.monotonic() - began
        return f"hidden after {taken:.2f} s, rows gone after {gone:.0f} s, room free after {free:.0f} s"

    def _free(self) -> bool:
        """Whether no dead row of items is left."""
        dead = self.query("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'callboard.items'::regclass")
        return bool(dead < self.items / 20)

    def _until(self, ended: int) -> None:
        counts = "SELECT succeeded + failed FROM callboard.jobs WHERE id = %s"
        if not wait_until(lambda: self.query(counts, self.watch.job) >= ended, STEP_SECONDS, pause=0.5):
            raise TimeoutError(f"{ended} items did not end in {STEP_SECONDS} s")

    def _counted(self) -> str:
        """Compare the counts of the job with its rows, and with what they have to be. An item that fails at its first
        attempt succeeds at the second: after a retry, or after its worker was killed in the first.
        """
        job = self.watch.job
        told = self.query("SELECT state::text, total, succeeded, failed FROM callboard.jobs WHERE id = %s", job)
        *rows, failed = self.query(
            "SELECT 'completed', count(*), count(*) FILTER (WHERE state = 'succeeded'),"
            " count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE item %% 100 = 7 AND attempt = 1)"
            " FROM callboard.items WHERE job_id = %s", job
        )  # fmt: skip
        assert told == tuple(rows) == ("completed", self.items, self.items - failed, failed), (told, rows, failed)
        return f"{told[2]:,} succeeded, {told[3]:,} failed, so say the counts and the rows"


#: The steps in their order, each a line of the first table.
STEPS = (Run.submit, Run.drain, Run.retry, Run.verify, Run.export, Run.run_again, Run.delete)


def table(folder: Path, items: int) -> Iterator[str]:
    """Rows of Markdown tables, each as it is measured."""
    with Node(folder / "rabbitmq") as node, Server(folder / "postgres", settings=SETTINGS) as server:
        migrate(server.url)
        urls = {"AMQP_URL": node.url, "DATABASE_URL": server.url}

        def kill_broker() -> None:
            node.kill()
            time.sleep(5)
            node.start()

        with _served(urls, folder) as (web, pid):
            watch = Watch(urls, web, items, folder / "looks.jsonl")
            run = Run(urls, folder, items, watch, kill_broker)
            watch.processes |= {
                "web": lambda: [pid],
                "RabbitMQ": lambda: [p for p in descendants(os.getpid()) if "beam" in _name(p)],
            }
            yield f"| {items:,} items | took | |"
            yield "|---|---|---|"
            failure: Exception | None = None
            try:
                for step in STEPS:
                    watch.phase = step.__name__
                    began = time.monotonic()
                    said = step(run)
                    yield f"| {step.__name__.replace('_', ' ')} | {time.monotonic() - began:.0f} s | {said} |"
            except Exception as error:  # noqa: BLE001 — what was seen until then has taken half an hour
                failure = error
            finally:
                watch.stop.set()
                watch.threads[0].join()
                for worker in run.workers:
                    worker.stop()
            steps = [step.__name__ for step in STEPS]
            head = " | ".join(step.replace("_", " ") for step in steps)
            yield f"\n| ms: p50, p95 | {head} |\n|---|{'---|' * len(steps)}"
            for what, by_step in watch.times.items():
                yield f"| {what} | {' | '.join(_spread(by_step[step]) for step in steps)} |"
            yield f"\n| at most | {head} |\n|---|{'---|' * len(steps)}"
            for what, peaks in watch.peaks.items():
                yield f"| {what} | {' | '.join(f'{peaks[step]:,.0f}' for step in steps)} |"
            if failure is not None:
                raise failure


def _spread(times: list[float]) -> str:
    return f"{median(times):.0f}, {quantiles(times, n=20, method='inclusive')[-1]:.0f}" if len(times) > 1 else "–"


def _name(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii")
    return ""


@contextmanager
def _served(urls: dict[str, str], folder: Path) -> Iterator[tuple[str, int]]:
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "callboard.commands.main", "serve", "--port", str(port), "--open-to-everyone"]
    with (folder / "web.log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **urls}, stdout=log, stderr=log)
    try:
        assert wait_until(lambda: answers(address), 60)
        yield address, server.pid
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.large", description=__doc__)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="for data and logs, which stay there; none: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for line in table(folder, given.items):
            print(line, flush=True)


if __name__ == "__main__":
    main()
