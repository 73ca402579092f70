"""`callboard sweep`: the sweep and the publisher without a worker."""

import logging

import typer
from dramatiq.brokers.stub import StubBroker

from callboard.commands import actor_modules
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.services import ends_on_sigterm, wait_for_the_end
from callboard.middleware.tracking import runtime_of

app = typer.Typer()


@app.command()
def sweep() -> None:
    """Repair stuck jobs and publish due messages, until Ctrl-C or SIGTERM. Workers do the same beside their work.

    Any number of these processes may run: they elect the one that repairs.
    """
    with database():  # a database that is down or has no schema is an error
        pass
    with ends_on_sigterm(), actor_modules.assembled() as broker:
        if isinstance(broker, StubBroker):
            raise CommandError("AMQP_URL is not set: only the worker with an in-process broker can sweep its messages")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
        runtime_of(broker).maintain()
        typer.echo("sweeping", err=True)
        wait_for_the_end()
