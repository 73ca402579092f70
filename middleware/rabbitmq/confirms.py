"""Publishes to RabbitMQ with asynchronous confirms (pika's SelectConnection)."""

import logging
import random
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import q_name, xq_name
from dramatiq.errors import BrokerConnectionError
from pika.adapters.select_connection import IOLoop, PollPoller, SelectConnection
from pika.adapters.utils.nbio_interface import AbstractIOReference, AbstractStreamProtocol, AbstractStreamTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.channel import Channel

from callboard.middleware.message import envelope
from callboard.middleware.process.outage import reason
from callboard.middleware.publish.transport import Answer, Unpublishable, Unreachable, cannot_encode
from callboard.sql import timings
from callboard.sql.rows import Outgoing

log = logging.getLogger("callboard.publisher")

#: Seconds to wait for a connection, or for the confirms of a batch, before the connection is given up.
CONFIRM_SECONDS = 20.0
#: Seconds for which `trouble` reports a connection that confirmed nothing, unless a confirm arrives meanwhile. RabbitMQ
#: may still accept connections and messages, so each new try looks well until it times out.
SILENT_SECONDS = 3 * CONFIRM_SECONDS
#: Seconds for which a batch waits while RabbitMQ blocks the connection.
BLOCKED_SECONDS = 5.0
#: Seconds between two calls of `while_waiting`, which renews claims.
RENEW_SECONDS = timings.PUBLISH_LEASE_SECONDS / 4
#: The channels that a publisher needs on its connection, and what is wrong with fewer.
CHANNELS = 2
TOO_FEW_CHANNELS = (
    f"allows fewer than {CHANNELS} channels on a connection: raise channel_max in AMQP_URL, or in RabbitMQ's settings"
)
#: Messages that are written between two runs of the connection's loop.
SERVE_EVERY_MESSAGES = 100
#: Bytes that are gathered before they are written to the socket.
GATHERED_BYTES = 65_536
#: AMQP reply codes with which RabbitMQ closes the channel or connection because a message is too large or malformed.
CONTENT_TOO_LARGE, PRECONDITION_FAILED, FRAME_ERROR, SYNTAX_ERROR = 311, 406, 501, 502
MESSAGE_FAULTS = (CONTENT_TOO_LARGE, PRECONDITION_FAILED, FRAME_ERROR, SYNTAX_ERROR)
#: pika's errors on a channel that is closing, and its close reasons for a channel that this process closed.
CLOSING = (pika.exceptions.AMQPChannelError, pika.exceptions.AMQPConnectionError)
CLOSED_BY_US = (pika.exceptions.ChannelClosedByClient, pika.exceptions.ConnectionClosedByClient)
#: The most bytes of a queue's name. AMQP allows 255, and the names of its delay and dead-letter queues are longer.
QUEUE_BYTES = 252
#: The most bytes of an exchange's name.
EXCHANGE_BYTES = 255
#: The AMQP reply code for an operation that the user may not do.
ACCESS_REFUSED = 403
#: RabbitMQ's error text for a message that is larger than its `max_message_size`.
TOO_LARGE = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")


class _Message(NamedTuple):
    """A message as pika publishes it."""

    queue: str
    body: bytes
    properties: pika.BasicProperties


class _Rejected(Unreachable):
    """RabbitMQ closed the channel because of one of the messages."""


class _GatheringTransport(AbstractStreamTransport):  # type: ignore[misc]
    """Gathers the frames that are written while the loop does not run, and writes them to the socket together. Pika
    writes each frame separately, and a message has three.
    """

    def __init__(self, transport: AbstractStreamTransport) -> None:
        self._transport = transport
        self._frames: list[bytes] = []
        self._size = 0
        self.gathers = False

    def write(self, data: bytes) -> None:
        """See pika."""
        self._frames.append(data)
        self._size += len(data)
        if not self.gathers or self._size >= GATHERED_BYTES:
            self.send()

    def send(self) -> None:
        """Write the gathered frames to the socket."""
        if self._frames:
            frames, self._frames, self._size = self._frames, [], 0
            self._transport.write(b"".join(frames))

    def get_write_buffer_size(self) -> int:
        """See pika."""
        return self._size + int(self._transport.get_write_buffer_size())

    def get_protocol(self) -> AbstractStreamProtocol:
        """See pika."""
        return self._transport.get_protocol()

    def abort(self) -> None:
        """See pika."""
        self._transport.abort()


class _Loop(IOLoop):  # type: ignore[misc]
    """A loop that waits with `poll`. With epoll, pika opens a file descriptor each time the loop starts; if the process
    has none left, the loop never starts again.
    """

    @staticmethod
    def _get_poller(get_wait_seconds: Callable[[], float | None], process_timeouts: Callable[[], None]) -> PollPoller:
        return PollPoller(get_wait_seconds, process_timeouts)


class _Services(SelectorIOServicesAdapter):  # type: ignore[misc]
    """The loop's services for a connection of pika.

    Addresses are looked up in the connection's thread. Pika would start a thread for that, which fails from Python 3.12
    on in a process that exits: a short script would end before its messages are published.
    """

    def __init__(self, loop: IOLoop) -> None:
        super().__init__(loop)
        self.transport: _GatheringTransport | None = None  # None: not connected

    def getaddrinfo(
        self, host: str, port: int, on_done: Callable[..., None], family: int = 0, socktype: int = 0, proto: int = 0,
        flags: int = 0,
    ) -> Any:  # fmt: skip
        """See pika: the loop calls `on_done` with the addresses or the error."""
        found: Any
        try:
            found = socket.getaddrinfo(host, port, family, socktype, proto, flags)
        except Exception as error:  # noqa: BLE001 — as pika does
            found = error
        return _Lookup(self.call_later(0, lambda: on_done(found)))

    def create_streaming_connection(self, protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """See pika: the connection writes to a `_GatheringTransport`."""

        def make_protocol() -> Any:
            protocol = protocol_factory()
            made = protocol.connection_made

            def connection_made(transport: AbstractStreamTransport) -> None:
                self.transport = _GatheringTransport(transport)
                made(self.transport)

            protocol.connection_made = connection_made
            return protocol

        return super().create_streaming_connection(make_protocol, *args, **kwargs)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """While the loop runs, each frame is written to the socket at once."""
        if self.transport is not None:
            self.transport.gathers = False
            self.transport.send()
        try:
            yield
        finally:
            if self.transport is not None:
                self.transport.gathers = True


class _Lookup(AbstractIOReference):  # type: ignore[misc]
    """A lookup whose answer is not delivered yet."""

    def __init__(self, timer: Any) -> None:
        self._timer = timer

    def cancel(self) -> bool:
        """Deliver no answer."""
        self._timer.cancel()
        return True


class ConfirmingPublisher:
    """Publishes a batch, then waits for all of its confirms at once. See `publish.transport.Transport`."""

    takes_chunks = True

    def __init__(self, broker: RabbitmqBroker) -> None:
        self._broker = broker
        self.in_order = not broker.max_priority
        self._trouble: str | None = None
        self._silence: tuple[str, float] = ("", 0.0)  # the error that nothing was confirmed; reported until (monotonic)
        self._refused: dict[str, str] = {}  # by queue: why it can't be declared
        self.while_waiting: Callable[[], None] | None = None
        self._connection: SelectConnection | None = None
        self._services: _Services | None = None  # of that connection
        self._channel: Channel | None = None
        self._question_channel: Channel | None = None
        self._address = ""
        self._close_reason = ""  # why the connection was closed
        self._question_error = ""  # why the channel for questions was closed
        self._blocked = ""  # why RabbitMQ blocks the connection; empty: it does not
        self._close_code: int | None = None
        self._max_bytes: int | None = None  # the largest body that RabbitMQ takes; None: not known
        self._next_tag = 1  # the delivery tag of the next message
        self._lowest_tag = 1  # the lowest tag that no multiple confirm has covered
        self._unconfirmed: dict[int, int] = {}  # by tag: the message's number in its batch
        self._confirmed: set[int] = set()  # numbers
        self._returned: set[str] = set()  # correlation ids of messages without a queue
        self._stopped = False

    @property
    def trouble(self) -> str | None:
        """See Transport."""
        silence, until = self._silence
        silent = silence if time.monotonic() < until else None
        return self._trouble or silent or next(iter(self._refused.values()), None)

    # Publishing ------------------------------------------------------------------------------------------------------

    def publish(self, batch: Sequence[Outgoing]) -> list[Answer]:
        """See Transport. A queue that does not exist is declared, and its messages are published once more."""
        answers: list[Answer] = [False] * len(batch)
        try:
            self._publish(batch, answers)
        except Unreachable as error:
            self._trouble = str(error)
            raise Unreachable(str(error), answers) from error
        self._trouble = None
        return answers

    def _publish(self, batch: Sequence[Outgoing], answers: list[Answer]) -> None:
        try:
            self._send_declared(self._encode_all(enumerate(batch), answers), answers)
        except _Rejected:
            # Publish each alone, to find the message that RabbitMQ rejects. It may have accepted others before, so all
            # are suspect.
            for n, out in enumerate(batch):
                if answers[n] is False:
                    self._publish_alone(n, replace(out, suspect=True), answers)

    def _publish_alone(self, n: int, out: Outgoing, answers: list[Answer]) -> None:
        try:
            self._send_declared(self._encode_all([(n, out)], answers), answers)
        except _Rejected as error:
            answers[n] = Unpublishable(f"RabbitMQ rejects the message: {error}")

    def _encode_all(self, numbered: Iterable[tuple[int, Outgoing]], answers: list[Answer]) -> dict[int, _Message]:
        """Return {number in the batch: message} for messages that can be encoded; set the answers of the others."""
        messages = {}
        for n, out in numbered:
            try:
                envelope.check_encoder(out)
                messages[n] = _encode(out, self._max_bytes)
            except envelope.OtherEncoder as error:
                self._refused[out.queue] = str(error)
            except Unpublishable as error:
                answers[n] = error
        return messages

    def _send_declared(self, messages: dict[int, _Message], answers: list[Answer]) -> None:
        """Publish messages and set their answers. If a queue does not exist, declare it and publish them again."""
        returned = self._send(messages, answers)
        if not returned:
            return
        for queue in {q_name(messages[n].queue) for n in returned}:
            self._declare(queue)
        self._send({n: messages[n] for n in returned}, answers)

    def _send(self, messages: dict[int, _Message], answers: list[Answer]) -> list[int]:
        """Publish messages, wait for their confirms, and set their answers; return the numbers of messages without a
        queue.

        Raises Unreachable, or its subclass _Rejected when RabbitMQ closed the channel because of a message.
        """
        if not messages:
            return []
        channel = self._open()
        self._check_blocked()  # after the alarm RabbitMQ would read every try, and deliver all copies
        self._write(channel, messages, answers)
        self._await_confirms()
        returned = [n for n, m in messages.items() if m.properties.correlation_id in self._returned]
        for n in self._confirmed.difference(returned):
            answers[n] = True
            self._refused.pop(q_name(messages[n].queue), None)
        if self._unconfirmed or self._channel is None:
            self._give_up()
        if not self._confirmed and any(answers[n] is False for n in messages):
            # After a failover, a node of a cluster may refuse messages for minutes that another node accepts.
            self.close()
        return returned

    def _write(self, channel: Channel, messages: dict[int, _Message], answers: list[Answer]) -> None:
        """Write messages to the connection. Each written message gets a delivery tag and awaits its confirm."""
        self._unconfirmed, self._confirmed, self._returned = {}, set(), set()
        for count, (n, message) in enumerate(messages.items(), 1):
            try:
                channel.basic_publish("", message.queue, message.body, message.properties, mandatory=True)
            except CLOSING:
                break
            except Exception as error:  # noqa: BLE001 — pika encodes a message completely before it writes it
                answers[n] = cannot_encode(error)
                continue
            self._unconfirmed[self._next_tag] = n
            self._next_tag += 1
            if count % SERVE_EVERY_MESSAGES == 0:
                self._run_loop(0)
            if self._channel is None:
                break

    def _give_up(self) -> None:
        """Raise the error of a batch that is not confirmed; close the connection unless it is blocked."""
        if self._blocked and self._channel is not None:
            raise Unreachable(self._blocked)
        why = self._close_reason or f"{self._address} confirmed nothing within {CONFIRM_SECONDS:.0f} s"
        if not self._close_reason and not self._confirmed:
            self._silence = why, time.monotonic() + SILENT_SECONDS
        rejected = self._close_code in MESSAGE_FAULTS
        self.close()
        raise _Rejected(why) if rejected else Unreachable(why)

    def _await_confirms(self) -> None:
        """Wait until all messages are confirmed, the channel is closed, or the deadline is over."""
        blocked = self._blocked
        deadline = time.monotonic() + (BLOCKED_SECONDS if blocked else CONFIRM_SECONDS)
        while self._unconfirmed and self._channel is not None and (left := deadline - time.monotonic()) > 0:
            self._run_loop(left)  # other events may stop it, too, for example the close of the question channel
            if self._blocked and not blocked:
                blocked, deadline = self._blocked, time.monotonic() + BLOCKED_SECONDS

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        first = self._lowest_tag if method.multiple else method.delivery_tag
        tags = range(first, method.delivery_tag + 1)
        if method.multiple:
            self._lowest_tag = method.delivery_tag + 1
        numbers = [self._unconfirmed.pop(tag) for tag in tags if tag in self._unconfirmed]
        if isinstance(method, pika.spec.Basic.Ack):
            self._confirmed.update(numbers)
        self._silence = "", 0.0
        if numbers and not self._unconfirmed:
            self._stop_loop()

    def _on_return(self, channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self._returned.add(properties.correlation_id or "")

    def _declare(self, queue: str) -> None:
        """Declare a missing queue, with its delay and dead-letter queues, as the broker would.

        The broker's `declare_queue` would make this worker consume the queue, even without any of its actors. If the
        user may not declare the queue, its messages wait. Raises Unreachable.
        """
        self._broker.queues_pending.add(queue)
        try:
            self._broker._ensure_queue(queue)  # noqa: SLF001
        except BrokerConnectionError as error:
            why = f"the queue {queue!r} does not exist and can't be declared: {reason(error)}"
            if getattr(error.args[0], "reply_code", None) != ACCESS_REFUSED:
                raise Unreachable(why) from error
            self._refused[queue] = why

    # Queue depth -----------------------------------------------------------------------------------------------------

    def depth(self, queue: str) -> int:
        """See Transport. Returns 0 for a queue that does not exist yet, or that the user may not access."""
        try:
            found = self._depth(queue)
        except Unreachable as error:
            self._trouble = str(error)
            raise
        self._trouble = None
        return found

    def _depth(self, queue: str) -> int:
        if _too_long(queue):
            return 0
        declared = self._ask(queue, partial(Channel.queue_declare, queue=queue, passive=True))
        return int(declared.message_count) if declared else 0

    # Questions -------------------------------------------------------------------------------------------------------

    def _ask(self, what: str, ask: Callable[..., object]) -> Any:
        """Return RabbitMQ's answer, a method frame, to `ask(channel, callback=…)` about `what`; None if that does not
        exist, or the user may not access it. Raises Unreachable.
        """
        self._open()
        self._check_blocked()  # RabbitMQ would not read the question
        answer: list[Any] = []

        def on_answer(frame: Any) -> None:
            answer.append(frame.method)
            self._stop_loop()

        self._question_error = ""
        if self._question_channel is None and self._connection is not None:
            self._open_question_channel(self._connection)
        if self._question_channel is not None:
            ask(self._question_channel, callback=on_answer)
            self._run_loop(CONFIRM_SECONDS)
        if self._channel is None:
            raise Unreachable(self._close_reason)
        if not answer and not self._question_error:
            self.close()  # a late answer would be taken for the confirm of the next batch
            raise Unreachable(f"{self._address} answers nothing about {what!r} within {CONFIRM_SECONDS:.0f} s")
        if not answer and not re.search("NOT_FOUND - no |ACCESS_REFUSED", self._question_error):
            raise Unreachable(self._question_error)
        return answer[0] if answer else None

    def _open_question_channel(self, connection: SelectConnection) -> None:
        """Open the channel for questions. RabbitMQ closes it when a queue does not exist, or its node is down."""

        def on_open(channel: Channel) -> None:
            self._question_channel = channel
            self._stop_loop()

        def on_close(_channel: Channel, reason: Exception) -> None:
            self._question_channel, self._question_error = None, str(reason)
            self._stop_loop()

        try:
            channel = connection.channel(on_open_callback=on_open)
        except pika.exceptions.NoFreeChannels:
            raise Unreachable(f"{self._address} {TOO_FEW_CHANNELS}") from None
        channel.add_on_close_callback(on_close)
        self._run_loop(CONFIRM_SECONDS)

    def name(self) -> str | None:
        """See Transport: the name of the RabbitMQ cluster, and the virtual host.

        Until an operator sets the cluster's name, each node reports another one. So each reported name is stored as an
        exchange, because all nodes share the exchanges.
        """
        self._open()
        connection: Any = self._connection
        cluster = (connection.server_properties or {}).get("cluster_name")
        if isinstance(cluster, bytes):
            cluster = cluster.decode(errors="replace")
        if not cluster:
            return None
        name = f"{cluster}, virtual host {connection.params.virtual_host}"
        self._ask(name, partial(_declare_exchange, name))
        return name

    def gave_name(self, name: str) -> bool:
        """See Transport."""
        return self._ask(name, partial(_declare_exchange, name, passive=True)) is not None

    # The connection --------------------------------------------------------------------------------------------------

    def _open(self) -> Channel:
        if self._blocked and self._channel is not None:
            self._run_loop(0)  # RabbitMQ may have unblocked the connection
        return self._channel or self._reconnect()

    def _reconnect(self) -> Channel:
        choices: Any = self._broker.parameters
        choices = [choices] if not isinstance(choices, list) else random.sample(choices, len(choices))
        for parameters in choices:
            channel = self._connect(parameters)
            if channel is not None:
                return channel
        raise Unreachable(self._close_reason or f"{self._address} gives no answer")

    def _connect(self, parameters: pika.connection.Parameters) -> Channel | None:
        self.close()  # the connection to a node that did not answer
        self._close_reason, self._close_code, self._blocked = "", None, ""
        self._address = address(parameters)
        try:
            self._services = _Services(_Loop())
        except OSError as error:  # such as no free file descriptor
            self._on_lost(error)
            return None
        self._connection = SelectConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_open_error_callback=lambda _, error: self._on_lost(error),
            on_close_callback=lambda _, error: self._on_lost(error),
            custom_ioloop=self._services,
        )
        self._connection.add_on_connection_blocked_callback(self._on_blocked)
        self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._run_loop(CONFIRM_SECONDS)
        return self._channel

    def _check_blocked(self) -> None:
        if self._blocked:
            raise Unreachable(self._blocked)

    def _on_blocked(self, _connection: SelectConnection, frame: Any) -> None:
        self._blocked = f"{self._address} blocks publishers: {frame.method.reason}"
        self._stop_loop()

    def _on_unblocked(self, _connection: SelectConnection, _frame: Any) -> None:
        self._blocked = ""

    def _on_channel(self, channel: Channel) -> None:
        self._next_tag = self._lowest_tag = 1
        self._unconfirmed = {}
        channel.add_on_close_callback(lambda _, error: self._on_lost(error))
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._on_ready(channel))

    def _on_ready(self, channel: Channel) -> None:
        self._channel = channel
        self._stop_loop()

    def _on_lost(self, error: BaseException) -> None:
        self._close_reason = f"{self._address}: {reason(error)}"
        self._close_code = getattr(error, "reply_code", None)
        if found := TOO_LARGE.search(self._close_reason):
            self._max_bytes = int(found[1])
        elif not isinstance(error, CLOSED_BY_US):
            self._max_bytes = None  # the node may restart with another limit
        self._channel = self._question_channel = None
        self._stop_loop()

    def _stop_loop(self) -> None:
        self._stopped = True
        if self._connection is not None:
            self._connection.ioloop.stop()

    def _run_loop(self, seconds: float) -> None:
        """Serve the connection until `_stop_loop` is called, for `seconds` at most; call `while_waiting` meanwhile."""
        if self._connection is None or self._services is None:
            return
        loop, end, self._stopped = self._connection.ioloop, time.monotonic() + seconds, False
        while True:
            left = max(end - time.monotonic(), 0.0)
            timer = loop.call_later(min(left, RENEW_SECONDS), loop.stop)
            try:
                with self._services.serving():
                    loop.start()
            except OSError as error:  # such as no free file descriptor for a socket
                self._on_lost(error)
            loop.remove_timeout(timer)
            if self._stopped or left <= RENEW_SECONDS:
                return
            if self.while_waiting is not None:
                self.while_waiting()

    def serve(self, *, reconnect: bool = False) -> None:
        """See Transport."""
        if self._channel is not None:
            self._run_loop(0)
        if self._channel is None and self._connection is not None:
            self._trouble = self._close_reason
        if reconnect:
            if self._trouble:
                self._open()
            self._trouble = self._blocked or None
            self._check_blocked()

    def close(self) -> None:
        """See Transport."""
        self._channel = self._question_channel = None
        if self._connection is None:
            return
        try:
            if self._connection.is_open:
                self._connection.close()
            for _ in range(10):
                # Each of its channels closes first, and stops the loop.
                if not self._connection.is_closed:
                    self._run_loop(0.2)
            if not self._connection.is_closed:  # RabbitMQ does not answer the close
                self._connection._adapter_disconnect_stream()  # noqa: SLF001 — pika would wait without a limit
                self._run_loop(0.2)
            self._connection.ioloop.close()
        except Exception:
            log.debug("closing the publisher's connection failed", exc_info=True)
        self._connection = None


def address(parameters: Any) -> str:
    """Return the address of a broker, or the addresses of its nodes, without credentials."""
    nodes = parameters if isinstance(parameters, list) else [parameters]
    return "RabbitMQ at " + " or ".join(f"{in_url(node.host)}:{node.port}" for node in nodes)


def in_url(host: str) -> str:
    """Return a host as it is written before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _declare_exchange(name: str, channel: Channel, **options: Any) -> None:
    """Declare the exchange that stores a name of the broker."""
    exchange = f"callboard at {name}".encode()[:EXCHANGE_BYTES].decode(errors="ignore")
    channel.exchange_declare(exchange, durable=True, **options)


def _encode(out: Outgoing, max_bytes: int | None) -> _Message:
    """Encode a row's message for pika. Raises Unpublishable."""
    if _too_long(out.queue):
        raise Unpublishable(f"the name of its queue has {len(out.queue.encode())} bytes, and {QUEUE_BYTES} are allowed")
    try:
        body, properties = envelope.body(out), envelope.properties(out)
    except Exception as error:
        raise cannot_encode(error) from error
    if max_bytes is not None and len(body) > max_bytes:
        raise Unpublishable(f"the message has {len(body):,} bytes, and RabbitMQ takes {max_bytes:,} at most")
    return _Message(str(xq_name(out.queue)) if out.dead else out.queue, body, properties)


def _too_long(queue: str) -> bool:
    return len(queue.encode()) > QUEUE_BYTES
