"""The settings as `callboard config` shows them, without secrets."""

import re
from typing import Any

from callboard.sql.settings import SETTINGS, Setting, unknown

MASK = "***"


def described() -> list[dict[str, Any]]:
    """Return each setting with its value, secrets masked; at the end the unknown variables named CALLBOARD_…."""
    # The value of an unknown variable may be a secret.
    unknown_rows = [_row(name, MASK, "", "not a setting of Callboard: misspelt?") for name in unknown()]
    return [*(_row(one.name, _shown(one), one.default, one.meaning) for one in SETTINGS), *unknown_rows]


def masked(value: str) -> str:
    """Return an address, or several separated by `;`, without passwords."""
    # A password may contain any character, also `;` and `@`; it ends before the last @ of its address.
    nodes = re.split(r";(?=\s*amqps?://)", value)
    hidden = ";".join(re.sub(r"(://[^:/?#@]*):.*@", rf"\1:{MASK}@", node, flags=re.DOTALL) for node in nodes)
    return re.sub(r"((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^&\s]*)", rf"\1{MASK}", hidden)


def _shown(setting: Setting[object]) -> str | None:
    return setting.text and (MASK if setting.secret else masked(setting.text))


def _row(name: str, value: str | None, default: str, meaning: str) -> dict[str, Any]:
    return {
        "name": name, "value": default if value is None else value, "set": value is not None, "default": default,
        "meaning": meaning,
    }  # fmt: skip
