"""OpenTelemetry: a span for each send, each submission and each attempt. Imported only where CALLBOARD_OPENTELEMETRY is
on.

Names and attributes follow OpenTelemetry's conventions for messaging. The app, or `opentelemetry-instrument`, sets up
the exporter of the spans.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware
from opentelemetry import context, trace
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import Link, SpanKind, StatusCode

from callboard.middleware.message.delivery import delivery_of
from callboard.middleware.message.failure import describe
from callboard.middleware.process.process import Stopping

_tracer = trace.get_tracer("callboard")


@contextmanager
def sending(message: Any) -> Iterator[None]:
    """Open a span while a message is sent; the message carries its context. A retry keeps the first context."""
    if message.options.get("retries"):
        yield
        return
    with _producing(message.actor_name, message.queue_name, {"messaging.message.id": message.message_id}):
        inject(message.options)
        yield


@contextmanager
def submitting(actor: str, queue: str) -> Iterator[dict[str, str]]:
    """Open a span while a job is submitted; yield its trace context, which is stored with the job."""
    carrier: dict[str, str] = {}
    with _producing(actor, queue, {}):
        inject(carrier)
        yield carrier


def _producing(actor: str, queue: str, attributes: dict[str, str]) -> Any:
    attributes |= _attributes("send", actor, queue)
    return _tracer.start_as_current_span(f"send {queue}", kind=SpanKind.PRODUCER, attributes=attributes)


def _attributes(operation: str, actor: str, queue: str) -> dict[str, str]:
    return {
        "messaging.system": "dramatiq", "messaging.operation.name": operation, "messaging.operation.type": operation,
        "messaging.destination.name": queue, "callboard.actor": actor,
    }  # fmt: skip


class Spans(Middleware):
    """Opens a span while an attempt runs: the actor's own spans and sends are its children.

    The span is a child of the span in which its message was sent, and linked to it. The span of an item of a submitted
    job begins a trace of its own, and is only linked to the submission: a trace with a million items could not be
    stored or shown.
    """

    def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """Begin the span."""
        delivery = delivery_of(message)
        if delivery is None or (attempt := delivery.attempt) is None:
            return
        parent, source = _read(message.options)
        if not source.is_valid and not attempt.standing:
            with suppress(Stopping):
                parent, source = _read(attempt.read_facts(attempt.job).trace or {})
            parent = trace.set_span_in_context(trace.INVALID_SPAN, parent)
        attributes = _attributes("process", message.actor_name, message.queue_name)
        span = _tracer.start_span(
            f"process {message.queue_name}", parent, SpanKind.CONSUMER,
            {
                **attributes, "messaging.message.id": message.message_id,
                "messaging.message.conversation_id": f"{attempt.job}/{attempt.item}",
                "callboard.attempt": attempt.number,
            },
            [Link(source)] if source.is_valid else None,
        )  # fmt: skip
        # The other attempts of a batch begin inside the first.
        leads = not trace.get_current_span().get_span_context().is_valid
        token = context.attach(trace.set_span_in_context(span, parent)) if leads else None
        delivery.span = span, token

    def after_process_message(
        self, broker: dramatiq.Broker, message: MessageProxy, *, result: Any = None,
        exception: BaseException | None = None,
    ) -> None:  # fmt: skip
        """End the span; set its error if the attempt failed."""
        delivery = delivery_of(message)
        if delivery is None or delivery.span is None:
            return
        (span, token), delivery.span = delivery.span, None
        if token is not None:
            context.detach(token)
        if exception is not None and span.is_recording():
            found = describe(exception)
            span.set_attribute("error.type", found.error_type)
            span.add_event(
                "exception",
                {
                    "exception.type": found.error_type, "exception.message": found.message,
                    "exception.stacktrace": found.traceback,
                },
            )  # fmt: skip
            span.set_status(StatusCode.ERROR, found.message)
        span.end()

    def after_skip_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """End the span without an error."""
        self.after_process_message(broker, message)


def _read(carrier: Mapping[str, Any]) -> tuple[context.Context, trace.SpanContext]:
    """Return the context that a message or a job carries, and the span in it. Values that are no text are ignored:
    other programs may write anything there.
    """
    found = extract({name: text for name, text in carrier.items() if type(text) is str}, context.Context())
    return found, trace.get_current_span(found).get_span_context()
