"""The targets that a job calls when it ends: as its submitter names them, and as its row keeps them."""

import re
from dataclasses import dataclass, fields
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

#: Targets of one kind of end at most.
MAX_TARGETS = 20
#: Characters of a URL at most.
MAX_URL_CHARACTERS = 2_048
#: The state of a job that calls the targets of an option.
END_STATES = {"on_complete": "completed", "on_fail": "failed", "on_cancel": "cancelled"}


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL that is sent a POST. Raises ValueError, with what is wrong and what is right."""

    url: str

    def __post_init__(self) -> None:
        parse_url(self.url)

    def as_json(self) -> dict[str, str]:
        """Return it as a job's row keeps it; a process limits its deliveries to one host."""
        return {"url": self.url, "host": parse_url(self.url).netloc.lower()}


@dataclass(frozen=True, slots=True)
class Message:
    """An actor that is sent a message, and its queue."""

    actor: str
    queue: str

    def as_json(self) -> dict[str, str]:
        """Return it as a job's row keeps it."""
        return {"actor": self.actor, "queue": self.queue}


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of each kind of end. Raises ValueError for too many of them."""

    on_complete: tuple[Webhook | Message, ...] = ()
    on_fail: tuple[Webhook | Message, ...] = ()
    on_cancel: tuple[Webhook | Message, ...] = ()

    def __post_init__(self) -> None:
        for name in END_STATES:
            if len(getattr(self, name)) > MAX_TARGETS:
                raise ValueError(f"{name} has {len(getattr(self, name))} callbacks, and {MAX_TARGETS} are allowed")

    @classmethod
    def from_lists(cls, given: dict[str, list[Webhook | Message]]) -> Self:
        """Make them of lists by option, each target once, in order."""
        return cls(**{field.name: tuple(dict.fromkeys(given.get(field.name, ()))) for field in fields(cls)})

    @classmethod
    def from_json(cls, given: dict[str, list[dict[str, str]]] | None) -> Self:
        """Read the column `callbacks` of a job's row."""
        found = {
            option: [
                Webhook(one["url"]) if "url" in one else Message(one["actor"], one["queue"])
                for one in (given or {}).get(state, ())
            ]
            for option, state in END_STATES.items()
        }
        return cls.from_lists(found)

    def as_json(self) -> dict[str, Any] | None:
        """Return them by the state that a job ends with, as its row keeps them; None when there is none."""
        found = {state: [target.as_json() for target in getattr(self, name)] for name, state in END_STATES.items()}
        return {state: targets for state, targets in found.items() if targets} or None


NO_TARGETS = Targets()


def parse_url(url: str) -> SplitResult:
    """Return the parts of a URL that may be posted to. Raises ValueError, whose text holds no secret of the URL."""
    if len(url) > MAX_URL_CHARACTERS:
        raise ValueError(f"a webhook's URL may have {MAX_URL_CHARACTERS:,} characters, not {len(url):,}")
    if not re.fullmatch(r"[!-~]+", url):
        raise ValueError("a webhook's URL is written in ASCII without blanks: others as %C3%A9, and a host as xn--…")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"a webhook's URL must be like https://host:port/path: {error}") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(f"a webhook's URL must be like https://host:port/path, not {redact_url(url)!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "a webhook's URL must hold no user and password: Callboard signs what it sends, or put a token into "
            "the query, which is never shown"
        )
    return parts


def redact_url(url: str) -> str:
    """Replace the parts of a URL that may be a secret: user, password, query and fragment."""
    hidden = re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1***@", url)
    bare, mark, _ = hidden.partition("?")
    return f"{bare}?***" if mark else hidden.partition("#")[0]
