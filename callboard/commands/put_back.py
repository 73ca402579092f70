"""`callboard put-back`: moves dead letters of RabbitMQ back to their queue."""

from typing import Annotated

import typer

from callboard.commands import output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.output import AsJson
from callboard.middleware.rabbitmq import queue_admin
from callboard.middleware.rabbitmq.queue_admin import NoAnswer
from callboard.sql.pool import broker_addresses
from callboard.sql.reads import queries
from callboard.words import count

app = typer.Typer()


@app.command()
def put_back(
    queue: Annotated[str, typer.Argument(help="The queue whose dead letters are moved back.", show_default=False)],
    *,
    limit: Annotated[
        int, typer.Option(min=1, max=queue_admin.MAX_MOVED, help="Maximum number to move, the oldest first.")
    ] = queue_admin.MAX_MOVED,
    as_json: AsJson = False,
) -> None:
    """Move dead letters back to their queue: the item of each gets another attempt."""
    addresses = broker_addresses()
    if not addresses:
        raise CommandError(queue_admin.NO_BROKER, code=2)
    with database() as conn:
        if queue not in (names := [row["name"] for row in queries.run(conn, queries.queues())]):
            there = f"known are {', '.join(names)}" if names else "there are none"
            raise CommandError(f"no known actor has a queue {queue!r}; {there}")
    try:
        moved, left = queue_admin.put_back(addresses, queue, limit)
    except NoAnswer as error:
        raise CommandError(f"can't ask RabbitMQ: {error}") from None
    if as_json:
        output.document({"put_back": moved, "left": left})
    else:
        typer.echo(f"{count(moved, 'dead letter')} put back, {left:,} left")
