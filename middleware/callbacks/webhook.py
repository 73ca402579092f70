"""One delivery to a webhook: a POST that is signed, bounded in time, and goes to public addresses only."""

import base64
import hmac
import ssl
import time
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urljoin

import httpcore

from callboard.middleware.callbacks.public_address import PublicBackend, Refused
from callboard.sql import settings
from callboard.sql.callback_targets import address, shown

#: Seconds that a connection, the next sign of an answer, and all of it together may take.
CONNECT, ANSWER, TOTAL = 5.0, 10.0, 15.0
#: How often a receiver may send it on.
REDIRECTS = 3
MOVED = (301, 302, 307, 308)
GONE = HTTPStatus.GONE


class Undelivered(Exception):
    """A try failed; the message says why. `last`: the receiver wants no other."""

    def __init__(self, why: str, *, last: bool = False) -> None:
        super().__init__(why)
        self.last = last


class Answer(NamedTuple):
    """What a receiver said: its status, and where it sends the request on (empty: nowhere)."""

    status: int
    location: str

    @property
    def good(self) -> bool:
        """Whether it is any of 2xx."""
        return self.status // 100 == HTTPStatus.OK // 100


def sign(key: bytes, callback_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header `webhook-signature`, as the Standard Webhooks specification has it: ``v1,`` and the
    base64 of the HMAC-SHA256 of id, timestamp (Unix seconds) and body with dots between.
    """
    signed = f"{callback_id}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"


def post(url: str, callback_id: str, body: bytes) -> None:
    """Deliver the callback with this id; raises Undelivered. Whatever it is of 2xx, an answer is a delivery.

    A redirect is sent the same POST, when it leads to what a webhook may be.
    """
    headers = _headers(callback_id, body)
    deadline = time.monotonic() + TOTAL
    for _ in range(1 + REDIRECTS):
        answer = _ask(url, headers, body, deadline)
        if answer.good:
            return
        if answer.status not in MOVED or not answer.location:
            raise Undelivered(f"the receiver answered {_status(answer.status)}", last=answer.status == GONE)
        url = _onward(url, answer.location)
    raise Undelivered(f"the receiver sends it on more than {REDIRECTS} times")


def _headers(callback_id: str, body: bytes) -> dict[str, str]:
    key = settings.WEBHOOK_SECRET.get()
    if not key:
        raise Undelivered(
            "there is no secret to sign it with: set CALLBOARD_WEBHOOK_SECRET where the workers run"
        )
    timestamp = int(time.time())
    return {
        "User-Agent": "callboard",
        "Content-Type": "application/json",
        "Connection": "close",
        "webhook-id": callback_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(key, callback_id, timestamp, body),
    }


def _ask(url: str, headers: dict[str, str], body: bytes, deadline: float) -> Answer:
    """One request; raises Undelivered where there is no answer."""
    try:
        return _exchange(url, {"Host": address(url).netloc, **headers}, body, deadline)
    except httpcore.TimeoutException:
        raise Undelivered(
            f"no answer in time ({CONNECT:g} s to connect, {TOTAL:g} s for all of it)"
        ) from None
    except Refused as error:
        raise Undelivered(str(error)) from None
    except httpcore.NetworkError as error:
        raise Undelivered(f"the connection failed: {str(error) or type(error).__name__}") from error
    except httpcore.ProtocolError as error:
        raise Undelivered(f"the answer is no HTTP: {error}") from error


def _exchange(url: str, headers: dict[str, str], body: bytes, deadline: float) -> Answer:
    """Of the answer only the head is read: what follows may have no end."""
    way = PublicBackend(deadline, private=settings.WEBHOOK_PRIVATE.get())
    waits = {"timeout": {"connect": CONNECT, "read": ANSWER, "write": ANSWER, "pool": TOTAL}}
    with (
        httpcore.ConnectionPool(_tls(), max_connections=1, network_backend=way) as pool,
        pool.stream("POST", url, headers=[*headers.items()], content=body, extensions=waits) as got,
    ):
        location = next((value for name, value in got.headers if name.lower() == b"location"), b"")
        return Answer(got.status, location.decode("latin-1"))


def _onward(url: str, location: str) -> str:
    """Where a redirect leads; a webhook may be there."""
    try:
        target = urljoin(url, location)
        parts = address(target)
    except ValueError as error:
        raise Undelivered(f"the receiver sends it on to where no webhook may be: {error}") from None
    if url.startswith("https:") and parts.scheme != "https":
        raise Undelivered(f"the receiver sends it on without encryption, to {shown(target)}")
    return target


def _status(number: int) -> str:
    try:
        return f"{number} {HTTPStatus(number).phrase}"
    except ValueError:
        return str(number)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Made once: to read the certificates takes a while."""
    return httpcore.default_ssl_context()
