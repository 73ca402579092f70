"""Reads the state of RabbitMQ's queues for operators, and puts dead letters back. Each call opens a connection."""

import logging
import re
import shlex
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import httpcore
import msgspec
import pika
from dramatiq.common import dq_name, xq_name
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from callboard.middleware.process.outage import reason
from callboard.middleware.rabbitmq import confirms
from callboard.sql import settings
from callboard.sql.json_values import iso

#: Seconds for which a call waits for a node.
ANSWER_SECONDS = 3.0
#: The ports of the management API, without and with TLS.
MANAGEMENT_PORTS = {"amqp": 15672, "amqps": 15671}
#: The most dead letters that one call shows, and puts back.
MAX_SHOWN, MAX_MOVED = 50, 1_000
#: The most bytes of a body that are shown.
BODY_BYTES = 1_000
#: Deliveries after which a dead letter that is shown is replaced by a copy. A quorum queue drops a message at its
#: delivery limit, which is 20 by default, and each look counts as a delivery.
DELIVERIES = 10
#: The errors that pika raises for an invalid address; the last three come from the parameter `ssl_options`.
UNUSABLE = (ValueError, TypeError, SyntaxError, AttributeError, OSError)
#: The errors of a request to a host without a management API.
UNREACHABLE = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.UnsupportedProtocol)

#: Advice by a part of the error text of a connection with TLS, or without it to a port that has it; the first match
#: counts.
TLS_ADVICE = (
    ("certificate has expired", "renew the certificate of RabbitMQ"),
    ("certificate is not valid for", "use a host in AMQP_URL that RabbitMQ's certificate names"),
    ("CERTIFICATE_VERIFY_FAILED", "set SSL_CERT_FILE to the certificate that signed RabbitMQ's"),
    ("WRONG_VERSION_NUMBER", "begin AMQP_URL with amqp://, or use the TLS port in it, 5671 by default"),
    *(
        (lost, "begin AMQP_URL with amqps:// if that is RabbitMQ's TLS port, else start it")
        for lost in ("Connection reset by peer", "Transport indicated EOF")
    ),
)

#: RabbitMQ's text about a missing right to a virtual host, or to a queue or an exchange in it.
_NO_RIGHT = re.compile("access to (?:[a-z]+ '.*' in )?vhost '(.*)' refused for user '(.*?)'")

NO_BROKER = "RabbitMQ can't be asked, since AMQP_URL is not set: set it to amqp://user:password@host:port/vhost"

log = logging.getLogger("callboard.rabbitmq")


class NoAnswer(RuntimeError):
    """RabbitMQ can't be asked, or refuses; the text says why, without a password."""


def with_depths(addresses: str, queues: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Return these rows of `queries.queues`, each with the number of its messages (ready, unacknowledged, delayed,
    dead) and of its consumers. The second result says why these numbers are not known, or is None. `addresses`: as in
    AMQP_URL.
    """
    found: dict[str, dict[str, Any]] = {}
    trouble = None
    try:
        found = _asked(addresses, [row["name"] for row in queues])
    except NoAnswer as error:
        trouble = str(error)
    return [{**row, **_depth(found, row["name"])} for row in queues], trouble


def _asked(addresses: str, queues: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return RabbitMQ's numbers of these queues, {name: numbers}. Uses the management API if it answers (at
    CALLBOARD_RABBITMQ_API, or its usual port), else AMQP. Raises NoAnswer.
    """
    if not addresses:
        raise NoAnswer(NO_BROKER)
    management = settings.RABBITMQ_API.get()
    for address in addresses.split(";"):
        if found := _managed(address, management):
            return found
    with connected(addresses) as connection:
        names = [name for queue in queues for name in (queue, dq_name(queue), xq_name(queue))]
        return {name: _declared(connection, name) for name in names}


def _depth(found: dict[str, dict[str, Any]], queue: str) -> dict[str, int | None]:
    """Return the numbers of one queue; None: not known. Only the management API knows `unacknowledged`."""
    own, delayed, dead = (found.get(name, {}) for name in (queue, dq_name(queue), xq_name(queue)))
    return {
        "ready": own.get("messages_ready"), "unacknowledged": own.get("messages_unacknowledged"),
        "delayed": delayed.get("messages_ready"), "dead": dead.get("messages_ready"),
        "consumers": own.get("consumers"),
    }  # fmt: skip


def _managed(address: str, management: str) -> dict[str, dict[str, Any]] | None:
    """Return {queue: numbers} of the virtual host from the management API; None if it does not answer."""
    parts, parameters = urlsplit(address.strip()), parameters_of(address)
    scheme = "https" if parts.scheme == "amqps" else "http"
    base = management or f"{scheme}://{confirms.in_url(parameters.host)}:{MANAGEMENT_PORTS[parts.scheme]}"
    columns = "name,messages_ready,messages_unacknowledged,consumers"
    url = f"{base.rstrip('/')}/api/queues/{quote(parameters.virtual_host, safe='')}?columns={columns}"
    login = parameters.credentials
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), ANSWER_SECONDS)
    trusted = parameters.ssl_options.context if parameters.ssl_options else None
    try:
        with httpcore.ConnectionPool(trusted) as pool:
            headers = [("Authorization", _basic(login.username, login.password))]
            answer = pool.request("GET", url, headers=headers, extensions={"timeout": timeouts})
            rows = msgspec.json.decode(answer.content) if answer.status == HTTPStatus.OK else None
    except (*UNREACHABLE, UnicodeError, msgspec.DecodeError) as error:  # UnicodeError: an invalid host name
        log.debug("the management API does not answer at %s: %s", base, error)
        return None
    return {row["name"]: row for row in rows} if isinstance(rows, list) else None


def _basic(name: str, password: str) -> str:
    return f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"


def parameters_of(address: str) -> pika.URLParameters:
    """Return the parameters of a connection to this node. Raises NoAnswer for an invalid address."""
    try:
        return pika.URLParameters(address.strip())
    except UNUSABLE:
        raise NoAnswer(f"RabbitMQ at AMQP_URL: {_fault(address.strip())}") from None


def _fault(address: str) -> str:
    """Return what is wrong with an address. pika's own error text is not used, because it may contain the password."""
    node, _, query = address.partition("?")
    shape = "it must be like amqp://user:password@host:port/vhost"
    with suppress(*UNUSABLE):
        pika.URLParameters(node)
        for name, value in [] if "@" in query else parse_qsl(query, keep_blank_values=True):
            try:
                pika.URLParameters(f"{urlsplit(node).scheme}://?{urlencode({name: value})}")
            except UNUSABLE as error:
                return f"{shape}, and its parameter {name} can't be used: {reason(error)}"
    return shape


def connect_advice(error: NoAnswer) -> str:
    """Return what to do when a connection can't be made."""
    if do := refusal_advice(str(error)):
        return do
    return next((do for text, do in TLS_ADVICE if text in str(error)), "start it, or correct AMQP_URL")


def refusal_advice(trouble: str) -> str:
    """Return what to do when RabbitMQ refuses its user a right, or what is above a limit; an empty text for any other
    trouble.
    """
    if " limit (" in trouble:  # of connections, for the virtual host, the user, or the node
        return "close other connections, or raise that limit"
    if "queue limit in vhost" in trouble:
        return "delete queues that are not used, or raise that limit"
    if (found := _NO_RIGHT.search(trouble)) is None:
        return ""
    where, user = map(shlex.quote, found.groups())
    return f"give the user its rights: rabbitmqctl set_permissions -p {where} {user} '.*' '.*' '.*'"


@contextmanager
def connected(addresses: str, seconds: float | None = None) -> Iterator[pika.BlockingConnection]:
    """Open a connection to the first node that answers within `seconds` (None: `ANSWER_SECONDS`). Raises NoAnswer, also
    for a connection error inside the block.
    """
    seconds, why = ANSWER_SECONDS if seconds is None else seconds, ""
    for address in addresses.split(";"):
        parameters = parameters_of(address)
        parameters.socket_timeout = parameters.stack_timeout = seconds
        parameters.blocked_connection_timeout = seconds
        parameters.connection_attempts = 1  # the address may ask for more, with seconds between them
        try:
            connection = pika.BlockingConnection(parameters)
        except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:  # of a host name
            why = f"{confirms.address(parameters)}: {reason(error)}"
            continue
        try:
            yield connection
        except (pika.exceptions.AMQPError, OSError) as error:
            raise NoAnswer(f"{confirms.address(parameters)}: {reason(error)}") from None
        finally:
            with suppress(pika.exceptions.AMQPError):
                connection.close()
        return
    raise NoAnswer(why)


def _declared(connection: pika.BlockingConnection, name: str) -> dict[str, Any]:
    """Return a queue's numbers by AMQP; an empty dict if it does not exist or access is refused."""
    try:
        with connection.channel() as channel:
            found = channel.queue_declare(name, passive=True).method
            return {"messages_ready": found.message_count, "consumers": found.consumer_count}
    except pika.exceptions.ChannelClosedByBroker:
        return {}


def dead_letters(addresses: str, queue: str) -> list[dict[str, Any]]:
    """Return the oldest dead letters of a queue, at most `MAX_SHOWN`, as the API describes them; they stay in the
    queue. `of`: "job/item" of an item's message. Raises NoAnswer.
    """
    found = []
    with connected(addresses) as connection:
        channel = connection.channel()
        try:
            channel.confirm_delivery()
            for _ in range(MAX_SHOWN):
                method, properties, body = channel.basic_get(xq_name(queue))
                if method is None:
                    break
                found.append(_described(properties, body))
                if ((properties.headers or {}).get("x-delivery-count") or 0) >= DELIVERIES:
                    _move(channel, xq_name(queue), method, properties, body)
        except pika.exceptions.ChannelClosedByBroker as error:
            raise NoAnswer(f"the dead letters of {queue} can't be read: {error.reply_text}") from None
        # When the channel is closed, unacknowledged messages return to their places.
    return found


def _described(properties: pika.BasicProperties, body: bytes) -> dict[str, Any]:
    deaths = (properties.headers or {}).get("x-death") or [{}]
    return {
        "message_id": properties.message_id, "actor": properties.type, "of": properties.correlation_id,
        "reason": deaths[0].get("reason"), "died_at": iso(deaths[0].get("time")),
        "body": body[:BODY_BYTES].decode(errors="replace"),
    }  # fmt: skip


def put_back(addresses: str, queue: str, most: int = MAX_MOVED) -> tuple[int, int]:
    """Move the oldest dead letters of a queue back to it, at most `most`, and only those that exist now. Returns how
    many were moved, and how many are left. Each is confirmed before it is removed from the dead letters. Its item gets
    another attempt. Raises NoAnswer.
    """
    moved = 0
    with connected(addresses) as connection:
        channel = connection.channel()
        try:
            there = channel.queue_declare(xq_name(queue), passive=True).method.message_count
            channel.confirm_delivery()
            while moved < min(there, most):
                method, properties, body = channel.basic_get(xq_name(queue))
                if method is None:
                    break
                _move(channel, queue, method, properties, body)
                moved += 1
        except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.UnroutableError) as error:
            raise NoAnswer(
                f"{moved} dead letters of {queue} were put back, and then RabbitMQ refused: {error}"
            ) from None
    return moved, there - moved


def _move(channel: BlockingChannel, queue: str, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
    properties.expiration = None
    channel.basic_publish("", queue, body, properties, mandatory=True)
    channel.basic_ack(method.delivery_tag)
