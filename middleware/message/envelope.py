"""A stored item as the message that carries it: the body as Dramatiq encodes it, and real AMQP properties. And back."""

import json
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any

import msgspec
import pika
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.encoder import JSONEncoder
from dramatiq.errors import DecodeError
from dramatiq.message import get_encoder

from callboard.middleware.message import stamp
from callboard.sql.rows import Outgoing

#: The arguments of a message that carries those of many items.
NOTHING = b'"args":[],"kwargs":{}'
#: The largest number an AMQP octet holds: a priority, or the bytes of a short string.
OCTET = 255


def encode_args(args: tuple[Any, ...] | list[Any], kwargs: dict[str, Any]) -> bytes:
    """An item's arguments as they are stored; raises what the app's encoder raises for what it can't write."""
    return get_encoder().encode({"args": args, "kwargs": kwargs})


def encode_options(options: dict[str, Any]) -> bytes | None:
    """A message's own options as they are stored; None for none."""
    return get_encoder().encode(options) if options else None


def message(out: Outgoing) -> Message[Any]:
    """The message itself, stamped."""
    decode = get_encoder().decode
    call = decode(out.args)
    options = decode(out.options) if out.options else {}
    options[stamp.OPTION] = _stamp(out).option()
    if out.more:
        options[stamp.CHUNK] = [{"item": part.item, **decode(part.args)} for part in (out, *out.more)]
        call = {"args": [], "kwargs": {}}
    return Message(
        queue_name=out.queue, actor_name=out.actor, args=tuple(call["args"]), kwargs=call["kwargs"], options=options,
        message_id=message_id(out), message_timestamp=_timestamp(out),
    )  # fmt: skip


def body(out: Outgoing) -> bytes:
    """The message's bytes. With Dramatiq's own encoder they are put together from the stored parts as they are:
    decoding and encoding them again would cost as much as the rest of publishing.
    """
    if type(get_encoder()) is not JSONEncoder:
        return message(out).encode()
    own = out.options[1:-1] + b"," if out.options else b""
    args = out.args[1:-1]
    if out.more:
        own, args = b'"%s":[%s],' % (stamp.CHUNK.encode(), b",".join(map(_part, (out, *out.more)))), NOTHING
    return b'{"queue_name":%s,"actor_name":%s,%s,"options":{%s"%s":%s},"message_id":%s,"message_timestamp":%d}' % (
        _name(out.queue), _name(out.actor), args, own, stamp.OPTION.encode(), _stamp(out).encode(),
        _quoted(message_id(out)), _timestamp(out),
    )  # fmt: skip


def _part(out: Outgoing) -> bytes:
    return b'{"item":%d,%s' % (out.item, out.args[1:])


def parts(carrier: Message[Any] | MessageProxy) -> list[Message[Any]]:
    """The messages of the items that one carries; itself, if that is one. Raises DecodeError for what is no run."""
    run = carrier.options.get(stamp.CHUNK)
    if run is None:
        return [carrier]  # type: ignore[list-item]
    if (mark := stamp.read(carrier.options)) and run:
        with suppress(TypeError, KeyError):
            return [_fit(_alone(carrier, mark._replace(item=part["item"]), part)) for part in run]
    raise DecodeError("what it carries is no run of items", run, None)


def _alone(carrier: Message[Any] | MessageProxy, mark: stamp.Stamp, part: dict[str, Any]) -> Message[Any]:
    return Message(
        carrier.queue_name, carrier.actor_name, tuple(part["args"]), part["kwargs"], {stamp.OPTION: mark.option()},
        f"{mark.job}-{mark.item}", carrier.message_timestamp,
    )  # fmt: skip


def message_id(out: Outgoing) -> str:
    """The message's id; of one that carries many items, one of its own."""
    return f"{out.message_id}-{out.more[-1].item}" if out.more else out.message_id


class _Fields(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The fields of a message, in Dramatiq's order."""

    queue_name: str
    actor_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    message_id: str
    message_timestamp: int


_fields = msgspec.json.Decoder(_Fields)


def read(body: bytes) -> Message[Any]:
    """The message; raises DecodeError for what is none, or would stop the threads that look at it.

    JSON is read by msgspec, in a quarter of the time; what it refuses (NaN, half a surrogate pair) is left to Dramatiq.
    """
    try:
        if type(get_encoder()) is JSONEncoder:
            found = _fields.decode(body)
            return _fit(
                Message(
                    found.queue_name, found.actor_name, found.args, found.kwargs, found.options, found.message_id,
                    found.message_timestamp,
                )
            )  # fmt: skip
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    return _fit(Message.decode(body))


def _fit(message: Message[Any]) -> Message[Any]:
    names = (message.actor_name, message.queue_name, message.message_id)
    if (
        type(message.options) is type(message.kwargs) is dict
        and type(message.message_timestamp) is int
        and all(type(name) is str and name.isprintable() for name in names)
    ):
        return message
    raise DecodeError("its fields are not those of a message", message, None)


def properties(out: Outgoing) -> pika.BasicProperties:
    """What RabbitMQ's management UI shows of it, and what stays on a dead letter."""
    return pika.BasicProperties(
        content_type="application/json" if type(get_encoder()) is JSONEncoder else "application/octet-stream",
        delivery_mode=2,
        priority=_priority(out),
        correlation_id=f"{out.job}/{out.item}" + (f"-{out.more[-1].item}" if out.more else ""),
        message_id=_short(message_id(out)),
        timestamp=_timestamp(out) // 1000,
        type=_short(out.actor),
        app_id="callboard",
    )


def _priority(out: Outgoing) -> int | None:
    """The option `broker_priority`, where it is one that AMQP can say."""
    if not out.options or b"broker_prio" not in out.options:
        return None
    found = get_encoder().decode(out.options).get("broker_priority")
    return found if type(found) is int and 0 <= found <= OCTET else None


def _short(text: str) -> str:
    """At most 255 bytes: a longer property would be refused, and with it all that is published beside it."""
    if text.isascii() and len(text) <= OCTET:
        return text
    return text.encode(errors="replace")[:OCTET].decode(errors="ignore")


def _stamp(out: Outgoing) -> stamp.Stamp:
    return stamp.Stamp(out.job, out.item, out.attempt, out.epoch, out.suspect)


def _timestamp(out: Outgoing) -> int:
    return out.sent_ms if out.sent_ms is not None else int(time.time() * 1000)


@lru_cache(maxsize=1024)
def _name(text: str) -> bytes:
    return _quoted(text)


def _quoted(text: str) -> bytes:
    return json.dumps(text).encode()
