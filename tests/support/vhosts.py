"""Virtual hosts of a test node, and what happens in them, by the management plugin's HTTP API.

Measured: a virtual host takes 30 ms, and a second with `rabbitmqctl add_vhost`.
"""

import base64
import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from callboard.commands.services.rabbitmq_programs import scripts
from tests.support.nodes import Node


@dataclass
class Broker:
    """A RabbitMQ to test on: its AMQP URL and its management API; of a private one also its log, and the environment
    of `rabbitmqctl`.
    """

    url: str
    management_url: str
    log: Path = Path(os.devnull)
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, node: Node) -> "Broker":
        """A private node as a broker; it needs the management plugin."""
        return cls(node.url, node.management_url, node.log, node.files.environment())

    def request(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API; its JSON answer, or None. Raises RuntimeError if it refuses."""
        parts, place = urlsplit(self.url), urlsplit(self.management_url)
        user = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        headers = {
            "Authorization": "Basic " + base64.b64encode(user.encode()).decode(),
            "Content-Type": "application/json",
        }
        connection = HTTPConnection(place.netloc, timeout=300)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, f"{place.path}/{path}", text, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {data.decode(errors='replace')}")
        return json.loads(data) if data else None

    @contextmanager
    def vhost(self) -> Iterator[str]:
        """A virtual host of its own, deleted at the end; gives its AMQP URL."""
        name = f"callboard-{uuid.uuid4().hex}"
        self.request("PUT", f"vhosts/{name}")
        try:
            yield urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))
        finally:
            self.request("DELETE", f"vhosts/{name}")

    # In the virtual host of an AMQP URL ------------------------------------------------------------------------------

    def queues(self, url: str) -> dict[str, int]:
        """How many messages, ready or unacknowledged, are in each queue; the counts are up to a second old."""
        return {queue["name"]: queue.get("messages", 0) for queue in self.request("GET", f"queues/{_vhost(url)}")}

    def unsettled(self, url: str, queue: str = "default") -> int:
        """How many messages are in a queue now, ready or unacknowledged: asked of the queue itself."""
        return int(dict(self._list("queues", url, "name", "messages"))[queue])

    def channels(self, url: str) -> set[tuple[str, str]]:
        """The (queue, channel) of each consumer now: asked of the queues themselves."""
        return {(queue, channel) for queue, channel in self._list("consumers", url, "queue_name", "channel_pid")}

    def _ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` prints, in half a second of processor time."""
        done = subprocess.run(
            [(scripts() or Path()) / "rabbitmqctl", "--quiet", *arguments],
            env=dict(self.environment), check=False, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _list(self, kind: str, url: str, *columns: str) -> list[list[str]]:
        printed = self._ctl(f"list_{kind}", "--no-table-headers", "-p", _vhost(url), *columns)
        return [line.split("\t") for line in printed.splitlines()]

    def delete_queue(self, url: str, queue: str) -> None:
        """Delete a queue with all that is in it."""
        self._ctl("delete_queue", queue, "-p", _vhost(url))

    def consumers(self, url: str) -> set[tuple[str, str]]:
        """The (queue, channel) of each consumer, a moment late. A channel that is still unknown is left out."""
        found = self.request("GET", f"consumers/{_vhost(url)}")
        known = [one for one in found if one["channel_details"]]
        return {(one["queue"]["name"], one["channel_details"]["name"]) for one in known}

    def close_connections(self, url: str) -> None:
        """Have RabbitMQ close every connection that there is now: the management API lists new ones seconds later."""
        self._ctl("close_all_connections", "--vhost", _vhost(url), "closed by a test")

    def allow_declaring(self, url: str, *, allowed: bool) -> None:
        """Let the URL's user declare and delete queues, or refuse it; it may always read and write."""
        user = urlsplit(url).username or "guest"
        rights = {"configure": ".*" if allowed else "^$", "write": ".*", "read": ".*"}
        self.request("PUT", f"permissions/{_vhost(url)}/{user}", rights)


def _vhost(url: str) -> str:
    return quote(unquote(urlsplit(url).path[1:]), safe="")
