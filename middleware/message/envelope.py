"""Turns a stored item into the message that carries it, with its AMQP properties, and decodes a message's bytes."""

import json
import math
import time
import unicodedata
from contextlib import suppress
from dataclasses import replace
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
from callboard.sql.call_bytes import BY_KEYWORD, BY_POSITION, packed, seems_json, unpacked
from callboard.sql.rows import Outgoing

#: The arguments of a message that carries many items: each item has its own.
NO_ARGS = b'"args":[],"kwargs":{}'
#: A header of a dead letter that Callboard publishes. Its name contains "x-death", the header that RabbitMQ sets
#: itself.
DEAD_LETTER_HEADER = "callboard-x-death"
#: The largest priority in AMQP, and the most bytes of a short string.
MAX_OCTET = 255
#: The first and last time, in milliseconds since 1970, that both PostgreSQL and Python can represent: years 1 and 9999.
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999

#: Yields the JSON of Dramatiq's own encoder in parts. Dramatiq makes such an encoder for each message, which takes half
#: of its time.
_json_parts = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
    markers=None, default=json.JSONEncoder().default, encoder=json.encoder.encode_basestring_ascii, indent=None,
    key_separator=":", item_separator=",", sort_keys=False, skipkeys=False, allow_nan=True,
)  # fmt: skip


class Undated(int):
    """The time of a message that has none: the time when it was read, so it differs at each delivery."""


class OtherEncoder(RuntimeError):
    """A row was written by an encoder that this process does not have, so only other processes can publish it."""


def encode_args(args: tuple[Any, ...] | list[Any], kwargs: dict[str, Any]) -> bytes:
    """Return an item's arguments as they are stored. Raises the errors of the app's encoder."""
    if type(encoder := get_encoder()) is JSONEncoder:
        try:  # the parts that are equal in each call are not encoded: that would take half of the time
            by_position = "".join(_json_parts(args, 0))[1:-1].encode() if args else b""
            by_keyword = "".join(_json_parts(kwargs, 0))[1:-1].encode() if kwargs else b""
        except RecursionError:
            pass  # Dramatiq's encoder raises the right error, for a list that contains itself or one that is too deep
        else:
            if not kwargs:
                return BY_POSITION + by_position
            return b'{"args":[%s],"kwargs":{%s}}' % (by_position, by_keyword) if args else BY_KEYWORD + by_keyword
    return packed(encoder.encode({"args": args, "kwargs": kwargs}))


def decode_args(stored: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return an item's arguments, by position and by keyword. Raises what the app's encoder raises for bytes that it
    can't decode, and TypeError or LookupError if they are not the arguments of a call.
    """
    call = get_encoder().decode(unpacked(stored))
    return tuple(call["args"]), call["kwargs"]


def encode_options(options: dict[str, Any]) -> bytes | None:
    """Return a message's own options as they are stored; None if it has none."""
    return get_encoder().encode(options) if options else None


def check_encoder(out: Outgoing) -> None:
    """Raise OtherEncoder when this process has Dramatiq's own encoder, and the row is not JSON."""
    if type(get_encoder()) is JSONEncoder and not seems_json(out.args):
        raise OtherEncoder(
            f"item {out.job}/{out.item} was written by an encoder that this process does not have: name the module that"
            " calls dramatiq.set_encoder() in CALLBOARD_ACTORS. Workers that have it publish the item"
        )


def message(out: Outgoing) -> Message[Any]:
    """Return the message of a row, stamped."""
    decode = get_encoder().decode
    args, kwargs = decode_args(out.args)
    options = decode(out.options) if out.options else {}
    options[stamp.OPTION] = _stamp(out).option()
    if out.more:
        options[stamp.CHUNK] = [{"item": part.item, **decode(unpacked(part.args))} for part in (out, *out.more)]
        args, kwargs = (), {}
    return Message(
        queue_name=out.queue, actor_name=out.actor, args=args, kwargs=kwargs, options=options,
        message_id=message_id(out), message_timestamp=_timestamp(out),
    )  # fmt: skip


def body(out: Outgoing) -> bytes:
    """Return the message of a row as bytes. With Dramatiq's own encoder they are joined from the stored bytes: to
    decode and encode these again would cost as much as the rest of publishing.
    """
    if type(get_encoder()) is not JSONEncoder:
        return message(out).encode()
    own = out.options[1:-1] + b"," if out.options else b""
    args = unpacked(out.args)[1:-1]
    if out.more:
        own, args = b'"%s":[%s],' % (stamp.CHUNK.encode(), b",".join(map(_part, (out, *out.more)))), NO_ARGS
    return b'{"queue_name":%s,"actor_name":%s,%s,"options":{%s"%s":%s},"message_id":%s,"message_timestamp":%d}' % (
        _name(out.queue), _name(out.actor), args, own, stamp.OPTION.encode(), _stamp(out).encode(),
        _quoted(message_id(out)), _timestamp(out),
    )  # fmt: skip


def _part(out: Outgoing) -> bytes:
    return b'{"item":%d,%s' % (out.item, unpacked(out.args)[1:])


def parts(carrier: Message[Any] | MessageProxy) -> list[Message[Any]]:
    """Return one message for each item of a chunk; a message that carries one item is returned as it is. Raises
    DecodeError if the items of a chunk are malformed.
    """
    run = carrier.options.get(stamp.CHUNK)
    if run is None:
        return [carrier]  # type: ignore[list-item]
    if stamp.read(carrier.options) and run:
        with suppress(TypeError, KeyError):
            return [checked(_single(carrier, part)) for part in run]
    raise DecodeError("the items that it carries are malformed", run, None)


def _single(carrier: Message[Any] | MessageProxy, part: dict[str, Any]) -> Message[Any]:
    own = {**carrier.options[stamp.OPTION], "item": part["item"]}
    return Message(
        carrier.queue_name, carrier.actor_name, tuple(part["args"]), part["kwargs"], {stamp.OPTION: own},
        f"{own['job']}-{own['item']}", carrier.message_timestamp,
    )  # fmt: skip


def message_id(out: Outgoing) -> str:
    """Return the message's id; a chunk has an id of its own."""
    return f"{out.message_id}-{out.more[-1].item}" if out.more else out.message_id


class _Fields(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The fields of a message, in Dramatiq's order. Dramatiq would give a message without an id another id at each
    delivery.
    """

    queue_name: str
    actor_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    message_id: str | None = None
    message_timestamp: int | None = None


_fields = msgspec.json.Decoder(_Fields)


def read(body: bytes) -> Message[Any]:
    """Decode a message. Raises DecodeError for one that would end a worker's thread.

    msgspec decodes JSON in a quarter of the time. Dramatiq decodes the JSON that msgspec refuses (NaN, half a surrogate
    pair).
    """
    try:
        if type(get_encoder()) is JSONEncoder:
            return checked(Message(*msgspec.structs.astuple(_fields.decode(body))))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    return checked(_decode(body))


def _decode(body: bytes) -> Message[Any]:
    try:
        return Message(**{"message_id": None, "message_timestamp": None, **get_encoder().decode(body)})
    except Exception as error:
        raise DecodeError("Failed to decode message.", body, error) from error


def timestamp_ms(given: object) -> int:
    """Return a message's time as it is stored, in milliseconds since 1970. Other packages write fractions, or no time:
    then it is now.
    """
    if not isinstance(given, int | float) or not math.isfinite(given):
        given = time.time() * 1000
    return int(min(max(given, FIRST_MS), LAST_MS))


def is_name(text: str) -> bool:
    """Return whether a text can name an actor, a queue or a message: it has no control characters and no half surrogate
    pairs. Marks and spaces of any script are allowed.
    """
    return text.isprintable() or all(unicodedata.category(sign) not in ("Cc", "Cs") for sign in text)


def of_queue(message: Message[Any], queue: str) -> Message[Any]:
    """Return the message with the name of the queue that delivered it: somebody may have moved it from the queue that
    it names. Dramatiq looks up the consumer by that name, and its thread would end if there is none.
    """
    return message if message.queue_name == queue else message.copy(queue_name=queue)


def checked(message: Message[Any]) -> Message[Any]:
    """Return a message with an id and a time. Raises DecodeError for one that would end a worker's thread."""
    given: object = message.message_timestamp
    identity: object = message.message_id
    if isinstance(given, float | None):
        dated = given is not None and math.isfinite(given)
        message = replace(message, message_timestamp=(int if dated else Undated)(timestamp_ms(given)))
    if identity is None:
        message = replace(message, message_id="")
    if has_fields(message) and type(message.message_timestamp) in (int, Undated):
        return message
    raise DecodeError("its fields have the wrong types", message, None)


def has_fields(message: Message[Any]) -> bool:
    """Return whether a worker can read a message's names, keyword arguments and options."""
    names = (message.actor_name, message.queue_name, message.message_id)
    return (
        type(message.options) is type(message.kwargs) is dict
        and all(type(name) is str and is_name(name) for name in names)
        and bool(message.actor_name and message.queue_name)
    )


def properties(out: Outgoing) -> pika.BasicProperties:
    """Return the AMQP properties of a row's message. RabbitMQ's management UI shows them; dead letters keep them."""
    return pika.BasicProperties(
        content_type="application/json" if type(get_encoder()) is JSONEncoder else "application/octet-stream",
        delivery_mode=2,
        headers={DEAD_LETTER_HEADER: True} if out.dead else None,
        priority=_priority(out),
        correlation_id=f"{out.job}/{out.item}" + (f"-{out.more[-1].item}" if out.more else ""),
        message_id=_short(message_id(out)),
        timestamp=max(_timestamp(out), 0) // 1000,  # AMQP has no time before 1970
        type=_short(out.actor),
        app_id="callboard",
    )


def _priority(out: Outgoing) -> int | None:
    """Return the option `broker_priority`; None if it is no AMQP priority."""
    if not out.options or b"broker_prio" not in out.options:
        return None
    found = get_encoder().decode(out.options).get("broker_priority")
    return found if type(found) is int and 0 <= found <= MAX_OCTET else None


def _short(text: str) -> str:
    """Return the text, cut to 255 bytes: RabbitMQ would close the channel for a longer one."""
    if text.isascii() and len(text) <= MAX_OCTET:
        return text
    return text.encode(errors="replace")[:MAX_OCTET].decode(errors="ignore")


def _stamp(out: Outgoing) -> stamp.Stamp:
    return stamp.Stamp(out.job, out.item, out.attempt, out.epoch, out.suspect, out.standing)


def _timestamp(out: Outgoing) -> int:
    return out.sent_ms if out.sent_ms is not None else int(time.time() * 1000)


@lru_cache(maxsize=1024)
def _name(text: str) -> bytes:
    return _quoted(text)


def _quoted(text: str) -> bytes:
    return json.dumps(text).encode()
