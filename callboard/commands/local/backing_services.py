"""Where the work happens: a database and a broker, ours or those that the environment names."""

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pika
import typer

from callboard.commands.database import reach
from callboard.commands.errors import CommandError, first_line
from callboard.commands.local.supervisor import RestartState
from callboard.commands.services import Node, Server, installed
from callboard.commands.services.child_process import NotStarted
from callboard.commands.settings import masked
from callboard.sql.migrate import migrate

INSIDE = "broker: Dramatiq's in-process one, {why}; the worker runs in this process"


@dataclass(slots=True)
class BackingServices:
    """See the module. What it starts, `stopping` stops, in the reverse order."""

    folder: Path
    throwaway: bool
    in_process: bool
    stopping: ExitStack
    kept: list[RestartState] = field(default_factory=list)
    database_url: str = ""
    amqp_url: str | None = None
    _node: Node | None = None

    def open(self) -> None:
        """Start what is needed, the slow one first, and bring the schema up to date.

        Raises NotStarted, and Fault for what can't be reached.
        """
        self._begin_broker()
        self._open_database()
        with reach(self.database_url):
            migrate(self.database_url)

    def wait(self) -> None:
        """Wait until the broker takes connections."""
        if self._node is not None:
            self._node.wait()

    def _open_database(self) -> None:
        self.database_url = os.environ.get("DATABASE_URL", "")
        if self.database_url:
            typer.echo(f"database: {masked(self.database_url)} (DATABASE_URL)", err=True)
            return
        server = Server(self.folder)
        self.stopping.callback(server.close)
        server.start()
        self.database_url = server.url
        self.kept.append(
            RestartState("PostgreSQL", server.running, server.start, self.folder / "postgres.log")
        )
        typer.echo(f"database: PostgreSQL in {self.folder}", err=True)

    def _begin_broker(self) -> None:
        self.amqp_url = os.environ.get("AMQP_URL") or None
        if self.in_process:
            self.amqp_url = None
            typer.echo(INSIDE.format(why="as asked for"), err=True)
        elif self.amqp_url:
            reach_broker(self.amqp_url)
            typer.echo(f"broker: {masked(self.amqp_url)} (AMQP_URL)", err=True)
        elif installed():
            self._begin_node()
            typer.echo("broker: a private RabbitMQ node", err=True)
        else:
            typer.echo(
                INSIDE.format(why="since RabbitMQ isn't installed here and AMQP_URL isn't set"), err=True
            )

    def _begin_node(self) -> None:
        node = self._node = Node(self.folder / "rabbitmq")
        # An orderly stop takes seconds, for data that goes with its folder.
        self.stopping.callback(node.kill if self.throwaway else node.stop)
        node.begin()
        self.amqp_url = node.url
        self.kept.append(RestartState("RabbitMQ", node.running, node.begin, node.log))


def reach_broker(addresses: str) -> None:
    """Raises Fault when no node at these addresses answers."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it says the same, in many lines
    why = ""
    for parameters in map(_parameters, addresses.split(";")):
        try:
            pika.BlockingConnection(parameters).close()
        except (pika.exceptions.AMQPError, OSError) as error:
            why = f"{parameters.host}:{parameters.port}: {_reason(error)}"
        else:
            return
    raise CommandError(f"can't reach RabbitMQ at {why}; start it, or correct AMQP_URL")


def _parameters(address: str) -> pika.URLParameters:
    try:
        if address.strip().startswith(("amqp://", "amqps://")):
            return pika.URLParameters(address.strip())
    except (ValueError, TypeError):
        pass  # its text may hold the password
    raise CommandError("AMQP_URL is no address of RabbitMQ: amqp://user:password@host:port/vhost")


def _reason(error: Exception) -> str:
    # pika says most of it in the error that this one came from, or in nothing but its type.
    return first_line(error) if str(error) else type(error).__name__


__all__ = ["BackingServices", "NotStarted", "reach_broker"]
