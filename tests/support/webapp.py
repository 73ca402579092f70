"""The web app for tests: called in process, and served on a port of its own."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from callboard.commands import server as servers
from callboard.commands.services import ports
from callboard.commands.services.child_process import wait_until
from callboard.web import create_app
from tests.support.timer import Timer

#: The type of a stream of events.
TYPE = "text/event-stream; charset=utf-8"
#: A script of a page whose events do not arrive while `silent` is set: a proxy keeps them, or the machine has slept.
SILENT = """
  const add = EventSource.prototype.addEventListener;
  EventSource.prototype.addEventListener = function (name, act) {
    add.call(this, name, (event) => window.silent || act(event));
  };
"""


def get(app: Any, *paths: str, lifespan: bool = True, **options: Any) -> list[httpx.Response]:
    """The answers of an app to these GETs, sent at the same time in an event loop of its own."""

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", **options) as client:
            return list(await asyncio.gather(*(client.get(path) for path in paths)))

    async def living() -> list[httpx.Response]:
        async with app.router.lifespan_context(app):
            return await ask()

    return asyncio.run(living() if lifespan else ask())


class Server(uvicorn.Server):
    """Leaves no connection to the garbage collector, which would warn of it in a later test."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in self.server_state.connections:
            connection.transport.abort()
        await asyncio.sleep(0)  # they are closed in the next turn of the loop


@contextmanager
def served(app: ASGIApp, port: int = 0, **options: Any) -> Iterator[str]:
    """Serve the app in a thread for a block; yields its address. `options`: more of uvicorn's."""
    with servers.listen("127.0.0.1", port) as listener:
        # A client keeps an idle connection for five seconds, as uvicorn does: it must not end while it is used again.
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=2, timeout_keep_alive=300, **options
        )
        server = Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started, 300)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def started(app: str, url: str, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server as a user starts it, with its address; it stops in ten seconds, and has no complaint."""
    (port,) = ports.free_ports(1)
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--log-level", "warning"]
    with log.open("wb") as out:
        server = subprocess.Popen(command, env={**os.environ, "DATABASE_URL": url}, stdout=out, stderr=out)
    address = f"http://127.0.0.1:{port}"
    try:
        assert wait_until(lambda: answers(address), 300)
        yield server, address
        timer = Timer()
        server.terminate()
        assert server.wait(300) in (0, -signal.SIGTERM)
        assert timer.seconds < 10
    finally:
        server.kill()
        server.wait()
    assert log.read_text(encoding="utf-8") == ""


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz").is_success
    except httpx.TransportError:
        return False


@contextmanager
def behind_proxy(app: Starlette, prefix: str) -> Iterator[str]:
    """Serve the app behind a proxy that takes the prefix away; yields the address of the proxy, without it."""
    with served(app, root_path=prefix) as inner:
        client = httpx.AsyncClient(timeout=300)

        async def forward(request: Request) -> Response:
            url = inner + str(request.url).partition(prefix)[2]
            asked = client.build_request(request.method, url, headers=request.headers.raw, content=await request.body())
            answer = await client.send(asked, stream=True)
            sent = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
            sent.raw_headers = [(name.lower(), value) for name, value in answer.headers.raw]
            return sent

        @asynccontextmanager
        async def closing(_: Starlette) -> AsyncIterator[None]:
            async with client:
                yield

        methods = ["GET", "POST", "PATCH", "DELETE"]
        routes = [Route(f"{prefix}{{rest:path}}", forward, methods=methods)]
        with served(Starlette(routes=routes, lifespan=closing)) as address:
            yield address


def open_app(url: str | None, **options: Any) -> Starlette:
    """The app on a database, open to everybody."""
    return create_app(url=url, open_to_everyone=True, **options)


class Event(NamedTuple):
    """A server-sent event."""

    name: str
    data: Any
    id: str | None


@contextmanager
def followed(url: str, *, headers: dict[str, str] | None = None) -> Iterator[Iterator[Event]]:
    """Follow a stream of events for a block."""
    with httpx.stream("GET", url, headers=headers, timeout=300) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, TYPE), answer.read()
        yield events(answer.iter_lines())


def events(lines: Iterator[str]) -> Iterator[Event]:
    """The events of a stream, but for those that only show that it lives."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
            continue
        if "data" in fields and fields["event"] != "alive":
            yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
        fields = {}
