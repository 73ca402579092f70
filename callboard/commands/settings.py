"""Every setting that comes from the environment, in one table."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "CALLBOARD_"
MASK = "***"


@dataclass(frozen=True, slots=True)
class Setting:
    """An environment variable, what it is when unset, and what it does."""

    name: str
    default: str
    meaning: str
    secret: bool = False


SETTINGS = (
    Setting("DATABASE_URL", "", "the PostgreSQL database: postgresql://user:password@host:port/name"),
    Setting("AMQP_URL", "", "RabbitMQ: amqp://user:password@host:port/vhost; several nodes with ; between"),
    Setting(
        "CALLBOARD_ACTORS",
        "",
        "modules with your actors, commas between: for `up`, `submit` and `dramatiq callboard.actors`",
    ),
    Setting("CALLBOARD_HUNG_AFTER", "60", "seconds in hand from which on an item may be taken for hung"),
    Setting(
        "CALLBOARD_KEEP", "30d", "how long a job that is over stays, unless it says so itself; or forever"
    ),
    Setting("CALLBOARD_PREPARE", "on", "off: no prepared statements, for a pooler that loses them"),
    Setting(
        "CALLBOARD_QUEUE_DEPTH",
        "",
        "messages kept ready in each queue of RabbitMQ, the rest waits in rows; unset: as its workers need",
    ),
    Setting("CALLBOARD_RELEASE", "", "the release of your code, shown with each worker"),
    Setting("CALLBOARD_RESULT_LIMIT", "262144", "bytes of JSON that an actor's result may have"),
    Setting(
        "CALLBOARD_WEBHOOK_PRIVATE", "off", "on: webhooks may go to private addresses, this machine's too"
    ),
    Setting(
        "CALLBOARD_WEBHOOK_SECRET", "", "what webhooks are signed with; none is sent without", secret=True
    ),
)


def described(environ: Mapping[str, str] = os.environ) -> list[dict[str, Any]]:
    """Each setting with its value, secrets masked; variables that look like one and are none come last."""
    known = {setting.name for setting in SETTINGS}
    strange = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    return [
        *(_row(setting, environ.get(setting.name)) for setting in SETTINGS),
        # What it holds nobody knows: it may be a secret.
        *(_row(Setting(name, "", "not a setting of Callboard: misspelt?"), MASK) for name in strange),
    ]


def masked(value: str) -> str:
    """A value without the passwords of the addresses in it."""
    # A password may hold any sign, also `;` and `@`: it ends before the last @ of its address.
    nodes = re.split(r";(?=\s*amqps?://)", value)
    hidden = ";".join(re.sub(r"(://[^:/?#@]*):.*@", rf"\1:{MASK}@", node, flags=re.DOTALL) for node in nodes)
    return re.sub(r"((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^&\s]*)", rf"\1{MASK}", hidden)


def _row(setting: Setting, value: str | None) -> dict[str, Any]:
    return {
        "name": setting.name,
        "value": setting.default if value is None else MASK if setting.secret else masked(value),
        "set": value is not None,
        "default": setting.default,
        "meaning": setting.meaning,
    }
