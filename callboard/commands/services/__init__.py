"""Services of our own for one machine: an embedded PostgreSQL and a private RabbitMQ node."""

from callboard.commands.services.postgres import postgres
from callboard.commands.services.process import NotStarted, Process, wait_until
from callboard.commands.services.rabbitmq import Node, installed, rabbitmq

__all__ = ["Node", "NotStarted", "Process", "installed", "postgres", "rabbitmq", "wait_until"]
