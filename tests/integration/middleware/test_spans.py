"""The spans that OpenTelemetry gets, where it is on: who is whose child, what is linked, and what failed."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import dramatiq
import httpx
import pytest
from dramatiq.brokers.stub import StubBroker
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import callboard
from callboard import Stage
from callboard.middleware import spans
from callboard.middleware.tracking import runtime_of
from callboard.sql.pool import connect
from callboard.sql.reads import queries
from tests.support.webapp import open_app
from tests.support.workers import wait_until

TIMEOUT = 300.0


class Traced:
    """An app with a worker in its process, and the spans that have ended."""

    def __init__(self, broker: dramatiq.Broker, tracer: trace.Tracer, exporter: InMemorySpanExporter) -> None:
        self.broker = broker
        self.tracer = tracer
        self._exporter = exporter

    def start(self) -> dramatiq.Worker:
        worker = dramatiq.Worker(self.broker, worker_threads=4, worker_timeout=50)
        worker.start()
        return worker

    def spans(self, name: str) -> list[ReadableSpan]:
        found = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def wait(self, name: str, count: int) -> list[ReadableSpan]:
        assert wait_until(lambda: len(self.spans(name)) >= count, TIMEOUT)
        return self.spans(name)


@pytest.fixture(params=["in process", "RabbitMQ"])
def traced(request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    monkeypatch.setenv("CALLBOARD_OPENTELEMETRY", "on")
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("callboard"))
    before = dramatiq.broker.global_broker
    if request.param == "RabbitMQ":
        url = request.getfixturevalue("amqp_url")
        broker: dramatiq.Broker = callboard.RabbitmqBroker(url=url, database_url=database_url)
    else:
        broker = callboard.install(StubBroker(), database_url=database_url)
    dramatiq.set_broker(broker)
    try:
        yield Traced(broker, provider.get_tracer("app"), exporter)
    finally:
        broker.close()
        dramatiq.broker.global_broker = before
    with connect(database_url) as conn:
        assert queries.run(conn, queries.verify())["drift"] == []


def parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_id)


def links(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def seen() -> tuple[int, str | None]:
    """The trace that code of an actor sees, and the one that its log lines name."""
    record = logging.LogRecord("app", logging.INFO, "app.py", 1, "", (), None)
    callboard.LogContext(prefix=False).filter(record)
    return trace.get_current_span().get_span_context().trace_id, record.__dict__["trace"]


def test_a_send_its_retries_and_what_it_sends_are_one_trace(traced: Traced) -> None:
    inside: list[tuple[int, str | None]] = []

    @dramatiq.actor(queue_name="sent", max_retries=1, min_backoff=1)
    async def flaky(fail: bool) -> None:
        inside.append(seen())
        if fail and callboard.current().attempt == 1:
            raise ValueError("once")
        if fail:
            flaky.send_with_options(args=(False,), delay=5)

    worker = traced.start()
    with traced.tracer.start_as_current_span("app") as app:
        flaky.send(fail=True)
    failed, retried, child = traced.wait("process sent", 3)
    worker.stop()
    sent, sent_again = traced.spans("send sent")
    assert (sent.kind, child.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert parent(sent) == app.get_span_context().span_id
    assert parent(failed) == parent(retried) == span_id(sent)
    assert parent(sent_again) == span_id(retried)
    assert parent(child) == span_id(sent_again)
    assert links(child) == [span_id(sent_again)]
    assert failed.status.status_code is StatusCode.ERROR
    assert [event.name for event in failed.events] == ["exception"]
    assert retried.status.status_code is child.status.status_code is StatusCode.UNSET
    assert [(span.attributes or {})["callboard.attempt"] for span in (failed, retried, child)] == [1, 2, 1]
    ours = app.get_span_context().trace_id
    assert inside == [(ours, f"{ours:032x}")] * 3


def bulk_actors() -> list[dramatiq.Actor[..., Any]]:
    @dramatiq.actor(queue_name="bulk", max_retries=1, min_backoff=1)
    def work(number: int) -> None:
        if number == 0:
            raise ValueError("always")
        if number == 1:
            raise callboard.Skip("none")

    @dramatiq.actor(queue_name="lists", max_retries=0)
    @callboard.batch
    def together(items: list[Any]) -> list[Any]:
        return [ValueError("bad") if item == 1 else seen()[0] for item in items]

    @dramatiq.actor(queue_name="first")
    def first(number: int) -> int:
        return number

    @dramatiq.actor(queue_name="second")
    def second(number: int) -> None:
        pass

    return [work, together, first, second]


def test_the_items_of_a_job_are_linked_to_its_submission(traced: Traced) -> None:
    """Each begins a trace of its own, also in a chunk, with a retry, in a list that its actor gets, and in a stage."""
    work, together, first, second = bulk_actors()
    worker = traced.start()
    with traced.tracer.start_as_current_span("app") as app:
        jobs = [callboard.submit(actor, range(4), chunk=4) for actor in (work, together)]
        jobs.append(callboard.stages("both", [Stage(first, items=[1]), Stage(second)]))
    assert [job.wait(TIMEOUT)["failed"] for job in jobs] == [1, 1, 0]
    worker.stop()
    for queue, attempts in (("bulk", 5), ("lists", 4)):
        (submitted,) = traced.spans(f"send {queue}")
        assert parent(submitted) == app.get_span_context().span_id
        ran = traced.spans(f"process {queue}")
        assert len(ran) == attempts
        assert all(span.parent is None and links(span) == [span_id(submitted)] for span in ran)
        assert len({trace_id(span) for span in ran}) == attempts
        errors = [span for span in ran if span.status.status_code is StatusCode.ERROR]
        assert len(errors) == attempts - 3
        assert {(span.attributes or {})["error.type"] for span in errors} == {"ValueError"}
    (submitted,) = traced.spans("send first")
    for queue in ("first", "second"):
        assert [links(span) for span in traced.spans(f"process {queue}")] == [[span_id(submitted)]]
    results = {item["item"]: item["result"] for item in jobs[1].items()}
    if runtime_of(traced.broker).make_transport().takes_chunks:
        assert {results[n] for n in (0, 2, 3)} <= {trace_id(s) for s in traced.spans("process lists")}


@pytest.mark.parametrize("traced", ["in process"], indirect=True)
def test_a_submission_over_http_belongs_to_the_request(traced: Traced, database_url: str) -> None:
    @dramatiq.actor(queue_name="posted")
    def posted() -> None:
        pass

    async def post() -> list[int]:
        app = open_app(database_url)
        transport = httpx.ASGITransport(app=app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
            with traced.tracer.start_as_current_span("request") as request:
                lines = {"headers": {"Content-Type": "application/x-ndjson"}, "content": b'{"actor": "posted"}\n[]\n'}
                for body in ({"json": {"actor": "posted", "items": [[]]}}, lines):
                    answer = await client.post("http://test/api/v1/jobs", **body)
                    assert answer.status_code == 201, answer.text
            return [request.get_span_context().span_id] * 2

    worker = traced.start()
    requests = asyncio.run(post())
    ran = traced.wait("process posted", 2)
    worker.stop()
    submitted = traced.spans("send posted")
    assert [parent(span) for span in submitted] == requests
    assert sorted(links(span) for span in ran) == sorted([span_id(span)] for span in submitted)


CHECK = """
import json, os, sys
import callboard, callboard.web
from dramatiq.brokers.stub import StubBroker
broker = callboard.install(StubBroker())
print(json.dumps([sorted(m for m in sys.modules if m.startswith("opentelemetry")),
                  [type(m).__name__ for m in broker.middleware][:2]]))
"""


@pytest.mark.parametrize("setting", ["off", "on"])
def test_nothing_is_imported_unless_it_is_asked_for(setting: str, database_url: str) -> None:
    env = {"DATABASE_URL": database_url, "CALLBOARD_OPENTELEMETRY": setting}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], env=env, check=True, capture_output=True, text=True, timeout=TIMEOUT
    )
    modules, middleware = json.loads(done.stdout)
    assert bool(modules) == (setting == "on")
    assert middleware == (["Tracking", "Spans"] if setting == "on" else ["Tracking", "AgeLimit"])
