"""All settings from the environment, which only `Setting` and `unknown` read."""

import base64
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from callboard.sql.limits import parse_span

T_co = TypeVar("T_co", covariant=True)

#: The prefix of our own variables.
PREFIX = "CALLBOARD_"
#: The fields of an item that CALLBOARD_LOG_LINK may contain.
LOG_FIELDS = ("job", "item", "attempt", "worker", "started_at", "finished_at")


class NotConfigured(RuntimeError):
    """A setting is missing or invalid; the text says which one, and what to do."""


@dataclass(frozen=True, slots=True)
class Setting(Generic[T_co]):
    """An environment variable. `parse(name, text)` returns its value, or raises ValueError with what is allowed."""

    name: str
    default: str
    parse: Callable[[str, str], T_co]
    meaning: str
    secret: bool = False

    @property
    def text(self) -> str | None:
        """Its text in the environment; None if it is unset or empty."""
        return os.environ.get(self.name) or None

    def get(self) -> T_co:
        """Return its current value; the default's if it is unset. Raises NotConfigured for an invalid text."""
        try:
            return self.parse(self.name, self.text or self.default)
        except ValueError as error:
            raise NotConfigured(str(error)) from None


def check() -> None:
    """Raise NotConfigured for the first of our variables whose text is invalid.

    `DATABASE_URL` and `AMQP_URL` may belong to other code, so they are checked only when they are used.
    """
    for setting in SETTINGS:
        if setting.name.startswith(PREFIX):
            setting.get()


def unknown() -> list[str]:
    """Return the `CALLBOARD_*` variables that are unknown: they may be misspelt."""
    known = {setting.name for setting in SETTINGS}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def keep_span(name: str, text: str) -> float | None:
    """Return the seconds of a span like 30d; None for "forever". Raises ValueError."""
    seconds = parse_span(name, text)
    return None if math.isinf(seconds) else seconds


def _text(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be UTF-8") from None
    return text


def _signing_key(name: str, text: str) -> bytes:
    """Return the key of a webhook secret: the base64 after ``whsec_``, decoded, or the UTF-8 of any other text."""
    encoded = text.removeprefix("whsec_")
    if encoded == text:
        return _text(name, text).encode()
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError(f"{name} must have base64 after whsec_, as `openssl rand -base64 32` makes it")
    return key


def _on_or_off(name: str, text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise ValueError(f"{name} must be on or off, not {text!r}")
    return text.lower() == "on"


def _opentelemetry(name: str, text: str) -> bool:
    wanted = _on_or_off(name, text)
    if wanted and find_spec("opentelemetry") is None:
        raise ValueError(
            f"{name} is on, and opentelemetry-api is not installed: install callboard[opentelemetry], or set it to off"
        )
    return wanted


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, without a unit, like 60; not {text!r}")
    return seconds


def _whole(most: int, what: str) -> Callable[[str, str], int]:
    def parse(name: str, text: str) -> int:
        number = int(text) if re.fullmatch(r"[0-9]{1,18}", text.strip()) else 0
        if not 1 <= number <= most:
            raise ValueError(f"{name} must be a whole number of {what} from 1 to {most}, not {text!r}")
        return number

    return parse


def _whole_or_none(most: int, what: str) -> Callable[[str, str], int | None]:
    parse = _whole(most, what)
    return lambda name, text: parse(name, text) if text else None


def _database(name: str, text: str) -> str:
    try:
        conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        # Neither the text nor psycopg's error, which repeats it: a password may be in it.
        raise ValueError(f"{name} must be an address like postgresql://user:password@host/name") from None
    return _text(name, text)


def _brokers(name: str, text: str) -> str:
    addresses = [address.strip() for address in text.split(";")] if text else []
    try:
        valid = all(map(_is_broker, addresses))
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"{name} must be an address like amqp://user:password@host:port/vhost")
    return _text(name, ";".join(addresses))


def _http(name: str, text: str) -> str:
    try:
        valid = not text or (re.fullmatch(r"https?://[^\s/@]+(/\S*)?", text) and urlsplit(text).port != 0)
    except ValueError:  # a port that is no number, or an unpaired bracket
        valid = False
    if not valid:
        raise ValueError(f"{name} must be an address like http://host:15672, without a login; not {text!r}")
    return _text(name, text)


def _log_link(name: str, text: str) -> str:
    try:
        text.format_map(dict.fromkeys(LOG_FIELDS, ""))
    except (KeyError, ValueError, IndexError, AttributeError):
        there = ", ".join(f"{{{one}}}" for one in LOG_FIELDS)
        raise ValueError(f"{name} may have {there}, and no other braces; not {text!r}") from None
    if text and not re.match(r"https?://[^\s/@{]+(/\S*)?$", text):
        raise ValueError(f"{name} must be an address like https://logs.example/?q={{job}}; not {text!r}")
    return _text(name, text)


def _is_broker(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in ("amqp", "amqps") and parts.port != 0  # raises ValueError for a port that is no number


DATABASE_URL = Setting(
    "DATABASE_URL", "", _database, "the PostgreSQL database: postgresql://user:password@host:port/name"
)
AMQP_URL = Setting(
    "AMQP_URL", "", _brokers, "RabbitMQ: amqp://user:password@host:port/vhost; several nodes separated by ;"
)
ACTORS = Setting(
    "CALLBOARD_ACTORS", "", _text,
    "modules with your actors, separated by commas: for `up`, `submit` and `dramatiq callboard.actors`",
)  # fmt: skip
ACTOR_WAIT = Setting(
    "CALLBOARD_ACTOR_WAIT", "1d", keep_span,
    "how long items wait for an actor that no worker has ever announced, until they fail; or forever",
)  # fmt: skip
HUNG_AFTER = Setting(
    "CALLBOARD_HUNG_AFTER", "60", _seconds,
    "seconds without a new step or progress after which an item in flight may be shown as hung",
)  # fmt: skip
KEEP = Setting(
    "CALLBOARD_KEEP", "30d", keep_span,
    "how long a job is kept after its end, unless it has a `keep` of its own; or forever",
)  # fmt: skip
LOG_LINK = Setting(
    "CALLBOARD_LOG_LINK", "", _log_link,
    "the URL of an item's log, for a link on its page: https://logs.example/?q={job}/{item}; "
    "also {attempt}, {worker}, {started_at} and {finished_at}",
)  # fmt: skip
METRICS_PORT = Setting(
    "CALLBOARD_METRICS_PORT", "", _whole_or_none(65535, "ports"),
    "the port at which workers serve metrics for Prometheus; unset: no metrics",
)  # fmt: skip
OPENTELEMETRY = Setting(
    "CALLBOARD_OPENTELEMETRY", "off", _opentelemetry, "on: sends, submissions and attempts make spans"
)
PREPARE = Setting(
    "CALLBOARD_PREPARE", "on", _on_or_off, "off: no prepared statements, for a pooler that does not support them"
)
QUEUE_DEPTH = Setting(
    "CALLBOARD_QUEUE_DEPTH", "", _whole_or_none(2**31 - 1, "messages"),
    "number of messages kept ready in each queue of RabbitMQ; the rest waits as rows; "
    "unset: as many as its workers need",
)  # fmt: skip
RABBITMQ_API = Setting(
    "CALLBOARD_RABBITMQ_API", "", _http,
    "RabbitMQ's management API, for the page of queues; "
    "unset: port 15672 of the host in AMQP_URL, or 15671 for amqps, with its login",
)  # fmt: skip
RELEASE = Setting("CALLBOARD_RELEASE", "", _text, "the release of your code, shown with each worker")
RESULT_LIMIT = Setting(
    "CALLBOARD_RESULT_LIMIT", "262144", _whole(2**28, "bytes"), "maximum size of an item's result, in bytes of JSON"
)
WEBHOOK_PRIVATE = Setting(
    "CALLBOARD_WEBHOOK_PRIVATE", "off", _on_or_off, "on: webhooks may go to private addresses, also of this machine"
)
WEBHOOK_SECRET = Setting(
    "CALLBOARD_WEBHOOK_SECRET", "", _signing_key,
    "the key that signs webhooks, whsec_ and base64; no webhook is sent without it", secret=True,
)  # fmt: skip

SETTINGS: tuple[Setting[object], ...] = (
    DATABASE_URL, AMQP_URL, ACTORS, ACTOR_WAIT, HUNG_AFTER, KEEP, LOG_LINK, METRICS_PORT, OPENTELEMETRY, PREPARE,
    QUEUE_DEPTH, RABBITMQ_API, RELEASE, RESULT_LIMIT, WEBHOOK_PRIVATE, WEBHOOK_SECRET,
)  # fmt: skip
