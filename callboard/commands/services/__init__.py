"""Services of our own for one machine: an embedded PostgreSQL and a private RabbitMQ node."""

from callboard.commands.services.child_process import NotStarted, Process, ends_on_sigterm, wait_until
from callboard.commands.services.postgres import Server, postgres
from callboard.commands.services.rabbitmq import Node, installed, rabbitmq

__all__ = [
    "Node",
    "NotStarted",
    "Process",
    "Server",
    "ends_on_sigterm",
    "installed",
    "postgres",
    "rabbitmq",
    "wait_until",
]
