"""Virtual hosts of a test node, by the management plugin's HTTP API, and what happens in them, asked of the node
itself: the API tells it seconds later.

Measured: a virtual host takes 30 ms, and a second with `rabbitmqctl add_vhost`.
"""

import base64
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from tests.support.nodes import Node, evaluate
from tests.support.workers import wait_until


@dataclass
class Broker:
    """A RabbitMQ to test on: its AMQP URL, its port for TLS if it has one, its management API, its log, and the
    environment of RabbitMQ's tools.
    """

    url: str
    tls_port: int | None
    management_url: str
    log: Path
    environment: Mapping[str, str]

    @classmethod
    def of(cls, node: Node) -> "Broker":
        """A node as a broker; it needs the management plugin."""
        return cls(node.url, node.tls_port, node.management_url, node.log, node.files.environment())

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

    def queues(self, url: str) -> Counter[str]:
        """How many messages, ready or unacknowledged, are in each queue; waits for a queue that is down."""
        found: Counter[str] = Counter()

        def all_known() -> bool:
            answer = self._ask(
                url,
                "[[binary_to_list(Name), if is_integer(N) -> N; true -> -1 end]"
                " || [{name, {resource, _, _, Name}}, {messages, N}]"
                " <- rabbit_amqqueue:info_all(Vhost, [name, messages])]",
            )
            found.clear()
            found.update(dict(json.loads(answer)))
            return -1 not in found.values()

        assert wait_until(all_known, 300), found
        return found

    def channels(self, url: str) -> set[tuple[str, str]]:
        """The (queue, channel) of each consumer."""
        found = self._ask(
            url,
            "[[binary_to_list(Name), pid_to_list(proplists:get_value(channel_pid, One))]"
            " || [{queue_name, {resource, _, _, Name}} | One] <- rabbit_amqqueue:consumers_all(Vhost)]",
        )
        return {(queue, channel) for queue, channel in json.loads(found)}

    def delete_queue(self, url: str, queue: str) -> None:
        """Delete a queue with all that is in it."""
        self._ask(
            url,
            f'{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(Vhost, queue, <<"{queue}">>)),'
            ' {ok, _} = rabbit_amqqueue:delete(Queue, false, false, <<"tests">>), 1',
        )

    def close_connections(self, url: str) -> None:
        """Have RabbitMQ close every connection that there is now."""
        self._ask(
            url,
            "Connections = rabbit_connection_tracking:list(Vhost),"
            ' rabbit_connection_tracking:close_connections(Connections, "closed by a test", 0)',
        )

    def _ask(self, url: str, expressions: str) -> str:
        return evaluate(self.environment, f'Vhost = <<"{unquote(urlsplit(url).path[1:])}">>, {expressions}')

    def allow_declaring(self, url: str, *, allowed: bool) -> None:
        """Let the URL's user declare and delete queues, or refuse it; it may always read and write."""
        self.allow(url, configure=allowed)

    def allow(self, url: str, *, configure: bool = True, read: bool = True) -> None:
        """Give the URL's user these rights to all queues, and that to write, and no other."""
        user = urlsplit(url).username or "guest"
        rights = {"configure": configure, "write": True, "read": read}
        given = {right: ".*" if allowed else "^$" for right, allowed in rights.items()}
        self.request("PUT", f"permissions/{_vhost(url)}/{user}", given)


def _vhost(url: str) -> str:
    return quote(unquote(urlsplit(url).path[1:]), safe="")
