"""Whether RabbitMQ answers at the addresses of AMQP_URL."""

import logging

import pika

from callboard.commands.errors import CommandError, first_line


def reach_broker(addresses: str) -> None:
    """Connect to the first node that answers. Raises CommandError when none of these addresses (`;` between) does."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs a failure in many lines
    why = ""
    for parameters in map(_parameters, addresses.split(";")):
        try:
            pika.BlockingConnection(parameters).close()
            return
        except (pika.exceptions.AMQPError, OSError) as error:
            why = f"{parameters.host}:{parameters.port}: {first_line(error)}"
    raise CommandError(f"can't reach RabbitMQ at {why}; start it, or correct AMQP_URL")


def _parameters(address: str) -> pika.URLParameters:
    try:
        return pika.URLParameters(address.strip())
    except (ValueError, TypeError):
        # The text of this error may hold the password.
        raise CommandError("AMQP_URL must be an address like amqp://user:password@host:port/vhost") from None
