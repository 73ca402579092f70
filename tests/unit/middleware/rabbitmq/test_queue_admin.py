"""A node that can't be asked is an error that says why."""

import json
import os
import socket
from http.server import BaseHTTPRequestHandler
from threading import Thread

import pika
import pytest

from callboard.middleware.rabbitmq.queue_admin import NoAnswer, connect_advice, connected, refusal_advice, with_depths
from tests.support.tls import LOCALHOST, https_server


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_a_host_with_no_possible_name_gives_no_answer(host: str) -> None:
    with pytest.raises(NoAnswer, match=host), connected(f"amqp://{host}"):
        pass


@pytest.mark.parametrize("host", ["[::1]:1", "a..b:1"])
def test_the_queues_of_a_node_that_cant_be_asked_are_unknown(host: str) -> None:
    (queue,), trouble = with_depths(f"amqp://{host}", [{"name": "default"}])
    assert queue["ready"] is None
    assert trouble is not None
    assert trouble.startswith(f"RabbitMQ at {host}: ")


def test_what_to_do_about_a_limit_of_rabbitmq() -> None:
    """That of connections was taken for a missing right where a worker reports it."""
    refused = "(530) \"NOT_ALLOWED - access to vhost 'jobs' refused for user 'app': connection limit (3) is reached\""
    assert connect_advice(NoAnswer(refused)) == "close other connections, or raise that limit"
    assert refusal_advice(refused) == "close other connections, or raise that limit"
    refused = "(406, \"PRECONDITION_FAILED - cannot declare queue 'work': queue limit in vhost 'jobs' (2) is reached\")"
    assert refusal_advice(refused) == "delete queues that are not used, or raise that limit"
    assert connect_advice(NoAnswer("[Errno 111] Connection refused")) == "start it, or correct AMQP_URL"


@pytest.mark.parametrize("what", ["", "queue 'it's mine' in ", "exchange '' in "])
def test_a_missing_right_is_named_with_the_command_that_gives_it(what: str) -> None:
    refused = f"(403) \"ACCESS_REFUSED - access to {what}vhost 'my jobs' refused for user 'app'\""
    do = "give the user its rights: rabbitmqctl set_permissions -p 'my jobs' app '.*' '.*' '.*'"
    assert connect_advice(NoAnswer(refused)) == do


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ("cacertfile=ca.pem", "parameter cacertfile can't be used: Unknown URL parameter: 'cacertfile'"),
        ("ssl_options={'cafile':'nowhere.pem'}", "parameter ssl_options can't be used: [Errno 2] No such file"),
        ("ssl_options={'cafile':", "parameter ssl_options can't be used: '{' was never closed"),
        ("ssl_options=['cafile']", "parameter ssl_options can't be used: "),
        ("heartbeat=60&heartbeat=never", "must be like amqp://user:password@host:port/vhost"),
        ("heartbeat=never", "parameter heartbeat can't be used: Invalid heartbeat value 'never'"),
        ("secret=@one:5672/", "must be like amqp://user:password@host:port/vhost"),
    ],
)  # fmt: skip
def test_an_address_that_cant_be_used_is_refused_with_its_fault(parameter: str, says: str) -> None:
    with pytest.raises(NoAnswer) as refused, connected(f"amqps://app:12?{parameter}"):
        pass
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "trusted", "says", "do"),
    [
        ("127.0.0.1", os.devnull, "self.signed certificate", "set SSL_CERT_FILE to the certificate"),
        ("127.0.0.2", str(LOCALHOST), r"not valid for '127\.0\.0\.2'", "use a host in AMQP_URL that"),
    ],
)
def test_what_to_do_about_a_certificate(
    monkeypatch: pytest.MonkeyPatch, host: str, trusted: str, says: str, do: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", trusted)
    with (
        https_server(BaseHTTPRequestHandler, host) as port,
        pytest.raises(NoAnswer, match=says) as refused,
        connected(f"amqps://{host}:{port}"),
    ):
        pass
    assert connect_advice(refused.value).startswith(do)


def test_what_to_do_about_tls_with_a_port_that_has_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak_plainly() -> None:
            with server.accept()[0] as caller:
                caller.sendall(b"AMQP\0\0\x09\1")

        answer = Thread(target=speak_plainly)
        answer.start()
        with pytest.raises(NoAnswer) as refused, connected(f"amqps://127.0.0.1:{server.getsockname()[1]}"):
            pass
        answer.join()
    assert connect_advice(refused.value).startswith("begin AMQP_URL with amqp://")


def test_what_to_do_about_a_port_with_tls_without_it() -> None:
    with (
        https_server(BaseHTTPRequestHandler) as port,
        pytest.raises(NoAnswer) as refused,
        connected(f"amqp://127.0.0.1:{port}"),
    ):
        pass
    assert connect_advice(refused.value).startswith("begin AMQP_URL with amqps://")


def test_a_node_is_asked_once_however_many_tries_its_address_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def refuse(parameters: pika.URLParameters) -> None:
        asked.append(parameters.connection_attempts)
        raise pika.exceptions.AMQPConnectionError

    monkeypatch.setattr(pika, "BlockingConnection", refuse)
    with pytest.raises(NoAnswer), connected("amqp://one.example?connection_attempts=100&retry_delay=5"):
        pass
    assert asked == [1]


class Management(BaseHTTPRequestHandler):
    """What RabbitMQ's management API answers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps([{"name": "default", "messages_ready": 5}]).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the name it has
        """Say nothing."""


def test_the_management_api_is_trusted_as_the_broker_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with https_server(Management) as port:
        monkeypatch.setenv("CALLBOARD_RABBITMQ_API", f"https://127.0.0.1:{port}")
        trusts = f"ssl_options={{'cafile':'{LOCALHOST}'}}"
        (queue,), trouble = with_depths(f"amqps://127.0.0.1:1/?{trusts}", [{"name": "default"}])
    assert (queue["ready"], trouble) == (5, None)
