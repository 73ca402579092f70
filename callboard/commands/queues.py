"""Commands for the queues of RabbitMQ: `queues put-back`."""

from typing import Annotated

import typer

from callboard.commands import actor_modules, output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.output import AsJson
from callboard.middleware.rabbitmq import queue_admin
from callboard.middleware.rabbitmq.queue_admin import NoAnswer
from callboard.sql import settings
from callboard.sql.reads import queries
from callboard.words import count

app = typer.Typer()


@app.command()
def queues(*, as_json: AsJson = False) -> None:
    """List the queues of all known actors: what waits in RabbitMQ and as rows, consumers, dead letters."""
    addresses = _addresses()
    with database() as conn:
        known = queries.run(conn, queries.queues())
    rows, trouble = queue_admin.with_depths(addresses, known)
    if trouble is not None:
        raise CommandError(f"can't ask RabbitMQ: {trouble}")
    if as_json:
        output.document({"queues": rows, "next": None})
    elif rows:
        cells = [{**row, "unserved": ", ".join(row["unserved"])} for row in rows]
        output.table(cells, ("name", "pending", "ready", "unacknowledged", "delayed", "dead", "consumers", "unserved"))
    else:
        typer.echo("no queues: no worker has announced an actor yet")


@app.command()
def put_back(
    queue: Annotated[str, typer.Argument(help="The queue whose dead letters go back.", show_default=False)],
    *,
    limit: Annotated[
        int, typer.Option(min=1, max=queue_admin.MAX_MOVED, help="The most to move, the oldest first.")
    ] = queue_admin.MAX_MOVED,
    as_json: AsJson = False,
) -> None:
    """Put dead letters back into their queue: the item of each gets another attempt."""
    addresses = _addresses()
    with database() as conn:
        if queue not in (names := [row["name"] for row in queries.run(conn, queries.queues())]):
            there = f"there are {', '.join(names)}" if names else "there are none"
            raise CommandError(f"no known actor has a queue {queue!r}; {there}")
    try:
        moved, left = queue_admin.put_back(addresses, queue, limit)
    except NoAnswer as error:
        raise CommandError(f"can't ask RabbitMQ: {error}") from None
    if as_json:
        output.document({"put_back": moved, "left": left})
    else:
        typer.echo(f"{count(moved, 'dead letter')} put back, {left:,} left")


def _addresses() -> str:
    actor_modules.use_running_stack()
    if addresses := settings.AMQP_URL.get():
        return addresses
    raise CommandError(queue_admin.NO_BROKER, code=2)
