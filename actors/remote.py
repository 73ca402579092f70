"""Calls the services at REMOTE_URL, which `callboard demo` runs instead of real ones. Your actors call an SDK."""

import json
import os
from http import HTTPStatus
from typing import Any

import httpcore

#: Shared by all threads of a process, and by its event loop.
POOL, ASYNC_POOL = httpcore.ConnectionPool(max_connections=100), httpcore.AsyncConnectionPool()
NETWORK = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)
TRIES = 5
TIMEOUTS = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), 10.0)}


class Refused(RuntimeError):
    """A service answered with an error. `retry_after`: seconds to wait, as the service asks, or 0."""

    def __init__(self, status: int, said: str, retry_after: float) -> None:
        super().__init__(f"{status}: {said}")
        self.status, self.said, self.retry_after = status, said, retry_after


def call(path: str, **sent: Any) -> Any:
    """GET a path, or POST `sent` as JSON; return the answer, decoded JSON or text. Raises Refused or one of NETWORK."""
    return _content(POOL.request(**_request(path, sent)))


async def acall(path: str, **sent: Any) -> Any:
    """Like `call`, without blocking the event loop."""
    return _content(await ASYNC_POOL.request(**_request(path, sent)))


def is_passing(tries: int, error: Exception) -> bool:
    """Return whether an item is retried: after a transient error, at most `TRIES` times. A bug fails it at once."""
    busy = isinstance(error, Refused) and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return (busy or isinstance(error, NETWORK)) and tries < TRIES


def _request(path: str, sent: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": "POST" if sent else "GET", "url": f"{os.environ['REMOTE_URL']}/{path}", "extensions": TIMEOUTS,
        "headers": {"Content-Type": "application/json"}, "content": json.dumps(sent).encode() if sent else None,
    }  # fmt: skip


def _content(answer: httpcore.Response) -> Any:
    headers = {name.lower(): value for name, value in answer.headers}
    text = answer.content.decode()
    content = json.loads(text) if headers[b"content-type"] == b"application/json" else text
    if answer.status >= HTTPStatus.BAD_REQUEST:
        said = content["error"] if isinstance(content, dict) else content
        raise Refused(answer.status, said, float(headers.get(b"retry-after", 0)))
    return content
