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
    """Repair what is stuck and publish what is due, until Ctrl-C or SIGTERM. Workers do the same beside their work.

    Any number of these may run: they elect one that repairs at a time.
    """
    with database():  # a database that is away or has no schema is an error
        pass
    with ends_on_sigterm(), actor_modules.assembled() as broker:
        if isinstance(broker, StubBroker):
            raise CommandError(
                "AMQP_URL is not set: only the worker that holds an in-process broker can sweep its messages"
            )
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
        runtime_of(broker).maintain()
        typer.echo("sweeping", err=True)
        wait_for_the_end()
