"""Whom a job calls when it ends, as its submitter names them and as its row keeps them."""

import re
from dataclasses import dataclass, fields
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

#: Callbacks of one kind of end, and characters of a URL, at most.
MOST = 20
LONGEST = 2_048
#: What a job is when it calls them.
STATES = {"on_complete": "completed", "on_fail": "failed", "on_cancel": "cancelled"}


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL that is sent a POST. Raises ValueError, with what is wrong and what is right."""

    url: str

    def __post_init__(self) -> None:
        address(self.url)

    def words(self) -> dict[str, str]:
        """As JSON has it; the deliveries to one host share what a process has."""
        return {"url": self.url, "host": address(self.url).netloc.lower()}


@dataclass(frozen=True, slots=True)
class Message:
    """An actor that is sent a message, and its queue."""

    actor: str
    queue: str

    def words(self) -> dict[str, str]:
        """As JSON has it."""
        return {"actor": self.actor, "queue": self.queue}


@dataclass(frozen=True, slots=True)
class Targets:
    """Whom a job calls when it is completed, failed or cancelled. Raises ValueError for too many of them."""

    on_complete: tuple[Webhook | Message, ...] = ()
    on_fail: tuple[Webhook | Message, ...] = ()
    on_cancel: tuple[Webhook | Message, ...] = ()

    def __post_init__(self) -> None:
        for name in STATES:
            if len(getattr(self, name)) > MOST:
                raise ValueError(f"{name} has {len(getattr(self, name))} callbacks, and {MOST} are allowed")

    @classmethod
    def of(cls, given: dict[str, list[Webhook | Message]]) -> Self:
        """Each once, in their order."""
        return cls(**{field.name: tuple(dict.fromkeys(given.get(field.name, ()))) for field in fields(cls)})

    def words(self) -> dict[str, Any] | None:
        """By the state that a job ends with, as JSON; None when nobody is called."""
        named = {state: [target.words() for target in getattr(self, name)] for name, state in STATES.items()}
        return {state: targets for state, targets in named.items() if targets} or None


NO_TARGETS = Targets()


def address(url: str) -> SplitResult:
    """The parts of a URL that may be posted to. Raises ValueError, without telling a secret in it."""
    if len(url) > LONGEST:
        raise ValueError(f"a webhook's URL may have {LONGEST:,} characters, not {len(url):,}")
    if not re.fullmatch(r"[!-~]+", url):
        raise ValueError(
            "a webhook's URL is written in ASCII without blanks: others as %C3%A9, and a host as xn--…"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"a webhook's URL must be like https://host:port/path: {error}") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(f"a webhook's URL must be like https://host:port/path, not {shown(url)!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "a webhook's URL must hold no user and password: Callboard signs what it sends, or put a token into "
            "the query, which is never shown"
        )
    return parts


def shown(url: str) -> str:
    """A URL as it may be shown: what may be a secret in it is not."""
    hidden = re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1***@", url)
    bare, mark, _ = hidden.partition("?")
    return f"{bare}?***" if mark else hidden.partition("#")[0]
