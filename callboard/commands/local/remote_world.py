"""Simulates the services that the shipped pipelines call: an ad API, quotes, AI providers, web sites, a classifier.

Like real services they limit rates with 429 and Retry-After, answer with errors, stall, and remember earlier requests.
Each answer depends only on its request, except that one answer in fifty is a transient error.
"""

import hashlib
import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote

#: Seconds that the ad API asks a customer to wait after too many requests.
RETRY_AFTER_SECONDS = 1
#: Of this many calls of a service one stalls for some seconds, and one is answered with an error.
EVERY_CALLS, STALL_SECONDS = 50, 0.5
#: Ad groups of every customer that already have an ad, that can't have one, and that violate the policy.
WITH_AD, WITHOUT_AD, AGAINST_POLICY = {49, 99}, {30, 60}, {17}


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    content: Any
    headers: Mapping[str, str] = MappingProxyType({})


class World:
    """The services, and their memory of earlier calls.

    A call takes `seconds`. The ad API accepts `customer_rate` requests per second from one customer.
    """

    seconds = 0.005
    customer_rate = 100

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ads: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        #: The maximum number of customers at once, and of requests of one customer at once.
        self.most_customers = self.most_of_one = 0
        self._customers: Counter[str] = Counter()
        self._second: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))

    def answer(self, service: str, path: str, sent: Any) -> Answer:
        """Answer a call of one of the services."""
        with self.lock:
            self.calls[service] += 1
            number = self.calls[service]
        with self._counted(path) if service == "ads" else nullcontext():
            time.sleep(STALL_SECONDS if number % EVERY_CALLS == 1 else self.seconds)
            if number % EVERY_CALLS == 0 and service != "sites":
                return Answer(503, {"error": "the service is overloaded, try again"})
            return SERVICES[service](self, path, sent)

    def figures(self) -> dict[str, int]:
        """Return the number of calls, and the maximum numbers of customers, and of calls of one customer, at once."""
        found = {
            "calls": self.calls.total(),
            "customers_at_once": self.most_customers,
            "calls_of_one_customer_at_once": self.most_of_one,
        }
        return {name: count for name, count in found.items() if count}

    def has_room(self, customer: str) -> bool:
        """Return whether a customer may send another request in this second."""
        with self.lock:
            now, (second, count) = int(time.time()), self._second[customer]
            count = count + 1 if second == now else 1
            self._second[customer] = (now, count)
            return count <= self.customer_rate

    @contextmanager
    def _counted(self, customer: str) -> Iterator[None]:
        with self.lock:
            self._customers[customer] += 1
            self.most_of_one = max(self.most_of_one, self._customers[customer])
            self.most_customers = max(self.most_customers, len(self._customers))
        try:
            yield
        finally:
            with self.lock:
                self._customers[customer] -= 1
                self._customers += Counter()  # only those above 0


def create_ad(world: World, path: str, sent: Any) -> Answer:
    """POST /ads/CUSTOMER {"ad_group_id": …}: a new ad; an existing ad is not an error."""
    if not world.has_room(path):
        return Answer(429, {"error": "too many requests"}, {"Retry-After": str(RETRY_AFTER_SECONDS)})
    group = int(sent["ad_group_id"])
    if group in WITHOUT_AD:
        return Answer(404, {"error": "No existing ad"})
    if group in AGAINST_POLICY:
        return Answer(400, {"error": f"policy violation: the headline of ad group {group} has a phone number"})
    name = f"customers/{path}/ads/{group}"
    with world.lock:
        known = group in WITH_AD or name in world.ads
        world.ads.setdefault(name, name)
    return Answer(200, {"resource": name, "note": "Already processed" if known else None})


def quotes(_world: World, path: str, _sent: Any) -> Answer:
    """GET /quotes/SYMBOL: a year of prices."""
    if path.startswith("X"):
        return Answer(404, {"error": f"{path} was delisted"})
    seed = _number(path)
    prices = [round(50 + (seed >> day % 40) % 100 + day * ((seed % 7) - 3) / 20, 2) for day in range(250)]
    return Answer(200, {"symbol": path, "prices": prices})


def ask(_world: World, path: str, sent: Any) -> Answer:
    """POST /ask/PROVIDER {"query": …}: the answer of an AI, which may or may not name the company."""
    query = str(sent["query"])
    if path == "south" and _number(query) % 23 == 0:
        return Answer(422, {"error": "the answer was withheld by a filter"})
    named = _number(path + query) % 3 != 0
    company = query.split(maxsplit=1)[0]
    return Answer(200, {"answer": f"Try {company if named else 'somebody else'}, as {path} recommends."})


def site(_world: World, path: str, _sent: Any) -> Answer:
    """GET /sites/DOMAIN: the front page."""
    if _number(path) % 29 == 0:
        return Answer(404, "<h1>no such site</h1>")
    links = "".join(f'<a href="/page/{n}">page {n}</a>' for n in range(_number(path) % 9))
    return Answer(200, f"<html><head><title>{path} – home</title></head><body>{links}</body></html>")


def classify(_world: World, _path: str, sent: Any) -> Answer:
    """POST /classify {"name": …}: a language model's classification of a data element."""
    name = str(sent["name"])
    private = any(word in name for word in ("email", "name", "birth", "phone"))
    content = {
        "information_security_classification": "confidential" if private else "internal",
        "risk_level": "high" if private else ("low", "medium")[_number(name) % 2],
        "regulatory_flag": private and _number(name) % 2 == 0,
        "pii_flag": private,
    }
    return Answer(200, content)


SERVICES: dict[str, Callable[[World, str, Any], Answer]] = {
    "ads": create_ad, "quotes": quotes, "ask": ask, "sites": site, "classify": classify,
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Handles a request to one of the services. GET /figures returns their counts."""

    protocol_version = "HTTP/1.1"
    world: World

    def do_GET(self) -> None:
        """Answer it."""
        self.do_POST()

    def do_POST(self) -> None:
        """Answer it."""
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        if len(sent) < length:  # the client was killed
            self.close_connection = True
            return
        service, _, path = unquote(self.path).strip("/").partition("/")
        if service == "figures":
            answer = Answer(200, self.world.figures())
        elif service in SERVICES:
            answer = self.world.answer(service, path.strip("/"), json.loads(sent or b"null"))
        else:
            answer = Answer(404, {"error": "no such service"})
        is_page = isinstance(answer.content, str)
        body = answer.content.encode() if is_page else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        kind = "text/html" if is_page else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """The HTTP server of the services, on a port of this machine."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, world: World, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), type("WorldHandler", (Handler,), {"world": world}))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


if __name__ == "__main__":
    with Server(World(), int(sys.argv[1])) as server:
        print("the remote world is there", flush=True)  # noqa: T201 — its parent waits for this
        server.serve_forever()
