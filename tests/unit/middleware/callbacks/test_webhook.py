"""Webhooks: the addresses they may go to, their signature, and receivers that answer oddly or never."""

import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from threading import Event
from typing import Any

import httpcore
import pytest
import standardwebhooks

from callboard.commands.services.ports import free_ports
from callboard.middleware.callbacks import public_address, webhook
from callboard.middleware.callbacks.undelivered import Undelivered
from callboard.middleware.callbacks.webhook import post, sign
from callboard.sql import settings
from callboard.sql.callback_targets import MAX_TARGETS, parse_url, redact_url
from tests.support.jobs import targets
from tests.support.receiver import Receiver, receiver, sends_on
from tests.support.timer import Timer
from tests.support.tls import LOCALHOST, https_server

ID = "9b1c2f6e-0000-4000-8000-000000000000"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"state":"completed"}'
#: Seconds that no test takes, and a fraction that is over soon.
TIMEOUT, SOON = 300.0, 0.5


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("CALLBOARD_WEBHOOK_PRIVATE", "on")
    for limit in ("CONNECT_SECONDS", "ANSWER_SECONDS", "TOTAL_SECONDS"):
        monkeypatch.setattr(webhook, limit, TIMEOUT)


@pytest.fixture
def here() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def only_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver's address counts as public; every other address counts as usual."""
    monkeypatch.setenv("CALLBOARD_WEBHOOK_PRIVATE", "off")
    is_public = public_address.is_public
    monkeypatch.setattr(public_address, "is_public", lambda found: found == "127.0.0.1" or is_public(found))


# Addresses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_an_address_is_public(address: str) -> None:
    assert public_address.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "fd00:ec2::254",
        "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:0a00:0001::1", "169.254.169.254", "fe80::1", "fe80::1%eth0",
        "224.0.0.1", "ff02::1", "0.0.0.0", "::", "::7f00:1", "240.0.0.1", "255.255.255.255", "100.64.0.1",  # noqa: S104
        "fec0::1", "192.0.0.192", "::ffff:192.0.0.192",
    ],
)  # fmt: skip
def test_an_address_is_not_public(address: str) -> None:
    assert not public_address.is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"])
def test_a_private_address_is_refused_however_it_is_written(
    host: str, here: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CALLBOARD_WEBHOOK_PRIVATE")
    with pytest.raises(Undelivered, match=r"no public address; .* CALLBOARD_WEBHOOK_PRIVATE=on"):
        post(f"http://{host}:{here.port}/", ID, BODY)
    assert here.calls == []


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """The addresses that each name resolves to: the first list at the first lookup, and so on."""
    names: dict[str, list[list[str]]] = {}
    plain: Callable[..., list[Any]] = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        found = names[host].pop(0) if host in names else [host]
        return [place for address in found for place in plain(address, port, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


def test_the_address_that_was_checked_is_the_one_connected_to(
    here: Receiver, only_here: None, named: dict[str, list[list[str]]]
) -> None:
    """The name resolves to a public address first, and to a private one a moment later."""
    named["rebinds.example"] = [["127.0.0.1"], ["127.0.0.2"]]
    url = f"http://rebinds.example:{here.port}/"
    post(url, ID, BODY)
    assert [call.headers["Host"] for call in here.calls] == [f"rebinds.example:{here.port}"]
    assert len(named["rebinds.example"]) == 1, "it was looked up once"
    with pytest.raises(Undelivered, match=r"^rebinds\.example has no public address") as refused:
        post(url, ID, BODY)
    assert "127.0.0.2" not in str(refused.value), "a tenant reads it"


def test_the_public_addresses_of_a_host_are_tried_in_turn(
    here: Receiver, monkeypatch: pytest.MonkeyPatch, named: dict[str, list[list[str]]]
) -> None:
    monkeypatch.setenv("CALLBOARD_WEBHOOK_PRIVATE", "off")
    public = ("127.0.0.3", "127.0.0.1")  # nobody listens at the first
    monkeypatch.setattr(public_address, "is_public", lambda found: found in public)
    named["several.example"] = [["127.0.0.2", *public]]
    post(f"http://several.example:{here.port}/", ID, BODY)
    assert len(here.calls) == 1
    named["several.example"] = [["127.0.0.2"]]
    with pytest.raises(Undelivered, match="no public address"):
        post(f"http://several.example:{here.port}/", ID, BODY)


# Redirects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_gets_the_same_post(status: int, here: Receiver, only_here: None) -> None:
    here.answers.append(sends_on("/elsewhere?a=b", status))
    post(here.url, ID, BODY)
    first, second = here.calls
    assert second.path == "/elsewhere?a=b"
    assert second.body == BODY
    assert second.headers["webhook-signature"] == first.headers["webhook-signature"]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://127.0.0.2:1/", "127.0.0.2 has no public address"),
        ("http://[::1]:1/", "::1 has no public address"),
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254 has no public address"),
        ("//10.0.0.1/", "10.0.0.1 has no public address"), ("file:///etc/passwd", "that webhooks may not use"),
        ("http://anna:hunter2@127.0.0.1/", "that webhooks may not use"), ("http://[/", "that webhooks may not use"),
    ],
)  # fmt: skip
def test_a_redirect_leads_only_where_a_webhook_may_be(
    location: str, says: str, here: Receiver, only_here: None
) -> None:
    here.answers.append(sends_on(location))
    with pytest.raises(Undelivered, match=says) as refused:
        post(here.url, ID, BODY)
    assert len(here.calls) == 1
    assert "hunter2" not in str(refused.value)


def test_an_endless_redirect_or_one_without_a_location_fails(here: Receiver) -> None:
    here.usual = sends_on("/again")
    with pytest.raises(Undelivered, match="redirects more than 3 times"):
        post(here.url, ID, BODY)
    assert len(here.calls) == 4
    here.usual = 307
    with pytest.raises(Undelivered, match="307 Temporary Redirect"):
        post(here.url, ID, BODY)


def test_a_redirect_from_https_to_http_is_refused() -> None:
    with pytest.raises(Undelivered, match=r"redirects to http://b/\?\*\*\*, without encryption"):
        webhook._redirected("https://a/", "http://b/?token=1")


# Answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [SECRET, SECRET.rstrip("="), "hunter2"])
def test_a_post_is_signed(secret: str, here: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver verifies it with the library of Standard Webhooks."""
    monkeypatch.setenv("CALLBOARD_WEBHOOK_SECRET", secret)
    post(f"{here.url}?for=me", ID, BODY)
    [call] = here.calls
    assert (call.path, call.body, call.id) == ("/hook?for=me", BODY, ID)
    assert call.headers["Content-Type"] == "application/json"
    receives = standardwebhooks.Webhook(secret if secret.startswith("whsec_") else secret.encode())
    assert receives.verify(call.body, dict(call.headers)) == {"state": "completed"}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        receives.verify(call.body + b" ", dict(call.headers))


def test_a_signature_has_the_form_of_the_specification() -> None:
    """Receivers have it in their code."""
    key = settings.WEBHOOK_SECRET.get()
    body = b'{"test": 2432232314}'
    # The example of the specification's libraries.
    assert sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )
    varied = {sign(k, i, t, b) for k in (b"a", b"b") for i in "cd" for t in (1, 2) for b in (b"e", b"f")}
    assert len(varied) == 16


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_delivery(status: int, here: Receiver) -> None:
    here.usual = status
    post(here.url, ID, BODY)


@pytest.mark.parametrize(
    ("status", "says", "last"),
    [
        (500, "500 Internal Server Error", False), (404, "404 Not Found", False), (303, "303 See Other", False),
        (599, "599", False), (410, "410 Gone", True),
    ],
)  # fmt: skip
def test_any_other_status_is_a_failure_and_410_is_the_last(status: int, says: str, last: bool, here: Receiver) -> None:
    here.usual = status
    with pytest.raises(Undelivered, match=f"^the receiver answered {says}$") as failure:
        post(here.url, ID, BODY)
    assert failure.value.last == last


def _nothing(handler: BaseHTTPRequestHandler) -> None:
    Event().wait(TIMEOUT)


def _trickle(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.02)


def _no_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 mail.example ESMTP\r\n")
    handler.close_connection = True


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def _endless_head(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-More: and more\r\n" * 1000)


@pytest.mark.parametrize("answer", [_nothing, _trickle])
def test_a_receiver_that_does_not_answer_is_given_up_in_time(
    answer: Callable[[BaseHTTPRequestHandler], None], here: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TOTAL_SECONDS", SOON)
    here.usual = answer
    timer = Timer()
    with pytest.raises(Undelivered, match=r"^no answer in time \(300 s to connect, 0\.5 s for all of it\)$"):
        post(here.url, ID, BODY)
    assert timer.seconds < TIMEOUT / 2


@pytest.mark.parametrize(
    ("answer", "says"), [(_no_http, "not HTTP"), (_hang_up, "not HTTP|connection failed"), (_endless_head, "not HTTP")]
)
def test_an_answer_that_is_no_answer_is_a_failure(
    answer: Callable[[BaseHTTPRequestHandler], None], says: str, here: Receiver
) -> None:
    here.usual = answer
    with pytest.raises(Undelivered, match=says):
        post(here.url, ID, BODY)


def test_an_endless_body_is_not_read(here: Receiver) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65_536)

    here.usual = endless
    timer = Timer()
    post(here.url, ID, BODY)
    assert timer.seconds < TIMEOUT / 2


def test_a_receiver_that_reads_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TOTAL_SECONDS", SOON)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        timer = Timer()
        with pytest.raises(Undelivered, match="no answer in time"):
            post(f"http://127.0.0.1:{deaf.getsockname()[1]}/", ID, b"x" * 20_000_000)
        assert timer.seconds < TIMEOUT / 2


def test_the_error_says_that_a_receiver_is_not_there() -> None:
    with pytest.raises(Undelivered, match=r"connection failed: .*refused"):
        post(f"http://127.0.0.1:{free_ports(1)[0]}/", ID, BODY)
    with pytest.raises(Undelivered, match=r"the host nowhere\.invalid is not found"):
        post("http://nowhere.invalid/", ID, BODY)


def test_a_certificate_that_does_not_fit_is_refused(here: Receiver) -> None:
    with pytest.raises(Undelivered, match="connection failed"):
        post(here.url.replace("http:", "https:"), ID, BODY)


def test_a_certificate_is_trusted_that_the_system_trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a company's own authority, which the package certifi does not have."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the name it has
            """Say nothing."""

    monkeypatch.setattr(webhook, "_tls", httpcore.default_ssl_context)  # as the system is set now
    with https_server(Handler) as port:
        with pytest.raises(Undelivered, match="CERTIFICATE_VERIFY_FAILED"):
            post(f"https://127.0.0.1:{port}/", ID, BODY)
        monkeypatch.setenv("SSL_CERT_FILE", str(LOCALHOST))
        post(f"https://127.0.0.1:{port}/", ID, BODY)


# What a submitter names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://a/b", "https://host:port/path, not 'ftp://a/b'"), ("https:///path", "https://host:port/path"),
        ("https://:80/", "https://host:port/path"), ("https://a:0/", "https://host:port/path"),
        ("https://a:99999/", "https://host:port/path"), ("https://[::1/", "https://host:port/path"),
        ("https://anna:hunter2@a/", "no user and password"), ("https://hunter2@a/", "no user and password"),
        ("https://a/ b", "ASCII without blanks"), ("https://münchen.example/", "xn--"), ("https://a/\x00", "ASCII"),
        ("https://a/" + "b" * 3_000, "2,048 characters"), ("", "ASCII"),
    ],
)  # fmt: skip
def test_a_bad_url_is_refused_with_what_is_right(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        parse_url(url)
    assert "hunter2" not in str(refused.value)


def test_targets_are_stored_by_the_state_that_calls_them() -> None:
    hook = "https://Shop.example:8443/hook?token=1"
    assert targets([hook, "tell", hook], [], "tell") == {
        "completed": [
            {"url": "https://Shop.example:8443/hook?token=1", "host": "shop.example:8443"},
            {"actor": "tell", "queue": "mail"},
        ],
        "cancelled": [{"actor": "tell", "queue": "mail"}],
    }
    assert targets([]) is None
    with pytest.raises(ValueError, match=f"on_fail has {MAX_TARGETS + 1} callbacks, and {MAX_TARGETS} are allowed"):
        targets(on_fail=[f"a{n}" for n in range(MAX_TARGETS + 1)])


@pytest.mark.parametrize(
    ("url", "as_"),
    [
        ("https://a/b?token=hunter2", "https://a/b?***"), ("https://a/b", "https://a/b"),
        ("https://anna:hunter2@a/b", "https://***@a/b"), ("https://a/b#hunter2", "https://a/b"),
        ("https://a/@b", "https://a/@b"),
    ],
)  # fmt: skip
def test_the_query_and_the_password_of_a_url_are_not_shown(url: str, as_: str) -> None:
    assert redact_url(url) == as_
