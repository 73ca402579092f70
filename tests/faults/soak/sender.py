"""A process that sends one message after another, and keeps a list of them: `python -m tests.faults.soak.sender plain
LIST` by an actor's `send`, `foreign LIST` by a plain channel, unrecorded. A line `try ID` comes before each, and a line
`sent ID` when it is out.
"""

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import dramatiq
import pika

from callboard.middleware.submission.enqueue import NotStored

PAUSE = 0.05


def plain(out: TextIO) -> None:
    """Plain sends: each is an item of the standing job when `send` returns."""
    importlib.import_module("tests.faults.soak.actors")
    broker = dramatiq.get_broker()
    work = broker.get_actor("work")
    while True:
        message = work.message(0)
        print("try", message.message_id, file=out, flush=True)
        with contextlib.suppress(NotStored):
            broker.enqueue(message)
            print("sent", message.message_id, file=out, flush=True)
        time.sleep(PAUSE)


def foreign(out: TextIO) -> None:
    """Messages that lie in RabbitMQ for sure, and that the database has not heard of."""
    while True:
        with contextlib.suppress(pika.exceptions.AMQPError, OSError), _channel() as channel:
            while True:
                message: dramatiq.Message[None] = dramatiq.Message("foreign", "outsider", (0,), {}, {})
                print("try", message.message_id, file=out, flush=True)
                channel.basic_publish(
                    "", "foreign", message.encode(), pika.BasicProperties(delivery_mode=2), mandatory=True
                )
                print("sent", message.message_id, file=out, flush=True)
                time.sleep(PAUSE)
        time.sleep(PAUSE)


@contextlib.contextmanager
def _channel() -> Iterator["pika.adapters.blocking_connection.BlockingChannel"]:
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel


def sent(path: Path) -> tuple[set[str], set[str]]:
    """The messages that are out for sure, and all that were tried."""
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    whole = [line for line in lines if len(line) == 2]
    return {name for verb, name in whole if verb == "sent"}, {name for _, name in whole}


if __name__ == "__main__":
    with Path(sys.argv[2]).open("a") as out:
        {"plain": plain, "foreign": foreign}[sys.argv[1]](out)
