"""One delivery to a webhook: a signed POST with a time limit, to public addresses only."""

import base64
import hmac
import http.client
import time
from functools import cache
from http import HTTPStatus
from urllib.parse import urljoin

import httpcore

from callboard.middleware.callbacks.public_address import NotPublic, PublicBackend
from callboard.middleware.callbacks.undelivered import Undelivered
from callboard.sql import settings
from callboard.sql.callback_targets import parse_url, redact_url

#: The most seconds to connect, to wait for the next bytes of the answer, and for the whole request.
CONNECT_SECONDS, ANSWER_SECONDS, TOTAL_SECONDS = 5.0, 10.0, 15.0
#: The most redirects that are followed, and their statuses.
REDIRECTS = 3
REDIRECT_STATUSES = (301, 302, 307, 308)
#: Created once, because reading the certificates takes a while.
_tls = cache(httpcore.default_ssl_context)


def sign(key: bytes, callback_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature` of Standard Webhooks: ``v1,`` and the base64 of the HMAC-SHA256 of the id,
    the timestamp (Unix seconds) and the body, joined by dots.

    The key comes from CALLBOARD_WEBHOOK_SECRET: the base64 after ``whsec_``, decoded; or the UTF-8 bytes of a secret
    without that prefix.
    """
    signed = f"{callback_id}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"


def post(url: str, callback_id: str, body: bytes) -> None:
    """Deliver a callback; any answer with a status 2xx is a success. Raises Undelivered.

    The same POST follows a redirect, if a webhook may go to its target. Without a secret nothing is sent.
    """
    headers = _headers(callback_id, body)
    deadline = time.monotonic() + TOTAL_SECONDS
    for _ in range(1 + REDIRECTS):
        status, location = _request(url, headers, body, deadline)
        if 200 <= status < 300:  # noqa: PLR2004
            return
        if status not in REDIRECT_STATUSES or not location:
            phrase = f"{status} {http.client.responses.get(status, '')}".rstrip()
            raise Undelivered(f"the receiver answered {phrase}", last=status == HTTPStatus.GONE)
        url = _redirected(url, location)
    raise Undelivered(f"the receiver redirects more than {REDIRECTS} times")


def _headers(callback_id: str, body: bytes) -> dict[str, str]:
    key = settings.WEBHOOK_SECRET.get()
    if not key:
        raise Undelivered("there is no secret to sign it with: set CALLBOARD_WEBHOOK_SECRET where the workers run")
    timestamp = int(time.time())
    return {
        "User-Agent": "callboard",
        "Content-Type": "application/json",
        "Connection": "close",
        "webhook-id": callback_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(key, callback_id, timestamp, body),
    }


def _request(url: str, headers: dict[str, str], body: bytes, deadline: float) -> tuple[int, str]:
    """Send one POST; return the answer's status and the target of its redirect (empty: none)."""
    backend = PublicBackend(deadline, private=settings.WEBHOOK_PRIVATE.get())
    headers = {"Host": parse_url(url).netloc, **headers}
    timeouts = {"connect": CONNECT_SECONDS, "read": ANSWER_SECONDS, "write": ANSWER_SECONDS, "pool": TOTAL_SECONDS}
    try:
        with (
            httpcore.ConnectionPool(_tls(), max_connections=1, network_backend=backend) as pool,
            pool.stream("POST", url, headers=[*headers.items()], content=body, extensions={"timeout": timeouts}) as got,
        ):  # the body of the answer is not read: it may be endless
            location = next((value for name, value in got.headers if name.lower() == b"location"), b"")
            return got.status, location.decode("latin-1")
    except httpcore.TimeoutException:
        limits = f"{CONNECT_SECONDS:g} s to connect, {TOTAL_SECONDS:g} s for all of it"
        raise Undelivered(f"no answer in time ({limits})") from None
    except NotPublic as error:
        raise Undelivered(str(error)) from None
    except httpcore.NetworkError as error:
        raise Undelivered(f"the connection failed: {str(error) or type(error).__name__}") from error
    except httpcore.ProtocolError as error:
        raise Undelivered(f"the answer is not HTTP: {error}") from error


def _redirected(url: str, location: str) -> str:
    """Return the target of a redirect. Raises Undelivered if a webhook may not go there."""
    try:
        target = urljoin(url, location)
        parts = parse_url(target)
    except ValueError as error:
        raise Undelivered(f"the receiver redirects to an address that webhooks may not use: {error}") from None
    if url.startswith("https:") and parts.scheme != "https":
        raise Undelivered(f"the receiver redirects to {redact_url(target)}, without encryption")
    return target
