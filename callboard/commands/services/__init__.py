"""Embedded PostgreSQL and a private RabbitMQ node as child processes, for `callboard up` and the tests."""

from callboard.commands.services.child_process import NotStarted, Process, wait_until
from callboard.commands.services.postgres import Server
from callboard.commands.services.rabbitmq import Node, installed
from callboard.commands.services.signals import ends_on_sigterm, wait_for_the_end

__all__ = ["Node", "NotStarted", "Process", "Server", "ends_on_sigterm", "installed", "wait_for_the_end", "wait_until"]
