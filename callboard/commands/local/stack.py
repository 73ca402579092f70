"""All of Callboard on this machine: starts database, broker, workers and web app together, and stops them in order."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import typer

from callboard.commands import tokens
from callboard.commands.database import reach
from callboard.commands.errors import CommandError
from callboard.commands.local import processes
from callboard.commands.local.reload import SourceWatch
from callboard.commands.local.supervisor import ManagedProcess, Supervisor
from callboard.commands.services import Node, Process, Server, installed
from callboard.commands.services.ports import free_ports
from callboard.commands.services.signals import ignores_signals
from callboard.commands.settings import masked
from callboard.middleware.rabbitmq import queue_admin
from callboard.middleware.rabbitmq.queue_admin import NoAnswer
from callboard.sql import settings
from callboard.sql.migrate import migrate
from callboard.sql.pool import connect

#: Maximum seconds until each node of AMQP_URL answers.
BROKER_SECONDS = 15.0


class LocalStack:
    """Runs everything for the duration of its block. `folder` has the data, the logs and `up.json`.

    `throwaway`: the data is not needed afterwards, so RabbitMQ is killed, because a clean stop takes seconds.
    `in_process` also becomes true if there is no RabbitMQ: then Dramatiq's in-process broker and the worker are in this
    process. `reload`: a folder with Python sources; workers finish their items and restart when one of them changes.
    """

    def __init__(
        self, folder: Path, *, processes: int, threads: int, port: int, in_process: bool, throwaway: bool = False,
        reload: Path | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.processes = processes
        self.threads = threads
        self.port = port or free_ports(1)[0]
        self.in_process = in_process
        self.throwaway = throwaway
        self.reload = reload
        self.web_url = f"http://127.0.0.1:{self.port}/"
        self.login_link = ""  # works once
        self._database_url = settings.DATABASE_URL.get()
        self._amqp_url = "" if in_process else settings.AMQP_URL.get()
        self._up_file = folder / "up.json"
        self._node: Node | None = None
        self._supervisor = Supervisor()
        self._stopping = ExitStack()

    def __enter__(self) -> Self:
        """Start everything. Raises NotStarted, and CommandError for a service or a module that can't be reached."""
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything in reverse order of the start."""
        with ignores_signals():
            self._stopping.close()

    def _start(self) -> None:
        # Close it in the main thread: the system ends children together with the thread that started them.
        self._stopping.callback(self._supervisor.close)
        self._up_file.unlink(missing_ok=True)  # left by a run that was killed
        self._begin_broker()
        if self.in_process and self.reload is not None:
            raise CommandError("--reload needs worker processes, and Dramatiq's in-process broker has none", code=2)
        self._start_database()
        # For this process and its children.
        os.environ["DATABASE_URL"] = self._database_url
        os.environ.pop("AMQP_URL", None)
        if self._amqp_url:
            os.environ["AMQP_URL"] = self._amqp_url
        web = processes.web(self.port, self.folder)
        self._start_children([web])
        if self._node is not None:
            self._node.wait()
        self._start_workers()
        web.wait()
        with connect(self._database_url) as conn:
            self.login_link = tokens.make_login_link(conn, self.web_url)
        self._announce()
        if self.reload is not None:
            self._supervisor.changed = SourceWatch(self.reload).changed
        self._supervisor.start()
        self._stopping.callback(self._supervisor.stop_restarting)

    def _begin_broker(self) -> None:
        """Start the private node without waiting, because it is slowest; or check the broker of AMQP_URL."""
        if self._amqp_url:
            try:
                with queue_admin.connected(self._amqp_url, BROKER_SECONDS):
                    broker = f"{masked(self._amqp_url)} (AMQP_URL)"
            except NoAnswer as error:
                raise CommandError(f"can't reach {error}; {queue_admin.connect_advice(error)}") from None
        elif not self.in_process and installed():
            self._begin_node()
            broker = "a private RabbitMQ node"
        else:
            missing = "because RabbitMQ isn't installed here and AMQP_URL isn't set"
            why = "as asked for" if self.in_process else missing
            broker = f"Dramatiq's in-process one, {why}; the worker runs in this process"
            self.in_process = True
        typer.echo(f"broker: {broker}", err=True)

    def _begin_node(self) -> None:
        node = self._node = Node(self.folder / "rabbitmq")
        self._stopping.callback(node.kill if self.throwaway else node.stop)
        node.begin()
        self._amqp_url = node.url
        self._supervise("RabbitMQ", node, node.begin)

    def _start_database(self) -> None:
        """Start the embedded PostgreSQL unless DATABASE_URL is set; bring the schema up to date."""
        if self._database_url:
            typer.echo(f"database: {masked(self._database_url)} (DATABASE_URL)", err=True)
        else:
            server = Server(self.folder)
            self._stopping.callback(server.close)
            server.start()
            self._database_url = server.url
            self._supervise("PostgreSQL", server, server.start)
            typer.echo(f"database: PostgreSQL in {self.folder}", err=True)
        with reach(self._database_url):
            migrate(self._database_url)

    def _start_workers(self) -> None:
        if not self.processes:
            return
        if self.in_process:
            self._stopping.callback(processes.InProcessWorker(self.threads, self.folder).stop)
            return
        workers = [processes.worker(n, self.threads, self.folder) for n in range(1, self.processes + 1)]
        self._start_children(workers, reload=True)
        for worker in workers:
            worker.wait()

    def _start_children(self, children: Sequence[processes.Child], *, reload: bool = False) -> None:
        self._stopping.callback(processes.stop, children)
        for child in children:
            child.start()
            self._supervise(child.name, child, child.start, ask_to_end=child.ask_to_end if reload else None)

    def _announce(self) -> None:
        """Write the addresses for commands that run in the same folder; only the owner may read them."""
        addresses = {"database_url": self._database_url, "amqp_url": self._amqp_url or None}
        self._up_file.touch(mode=0o600)
        self._stopping.callback(self._up_file.unlink, missing_ok=True)
        self._up_file.write_text(json.dumps({**addresses, "web_url": self.web_url}) + "\n", encoding="utf-8")

    def _supervise(
        self, name: str, service: Process, start: Callable[[], object],
        ask_to_end: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        managed = ManagedProcess(name, service.running, start, service.log, ask_to_end)
        self._supervisor.processes.append(managed)
