"""The targets that a job calls when it ends, as its row stores them, and the checks of URLs."""

import re
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

#: The targets of a job, by its end state: each {"url", "host"} or {"actor", "queue"}; None: no targets.
Targets: TypeAlias = dict[str, list[dict[str, str]]] | None
#: The most targets of one end state.
MAX_TARGETS = 20
#: The most characters of a URL.
MAX_URL_CHARACTERS = 2_048
#: The end state that calls the targets of each option.
END_STATES = {"on_complete": "completed", "on_fail": "failed", "on_cancel": "cancelled"}


def parse_url(url: str) -> SplitResult:
    """Return the parts of a URL that webhooks may use. Raises ValueError, whose text contains no secret of the URL."""
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
            "a webhook's URL must have no user and password: Callboard signs its requests, or put a token into the "
            "query, which is never shown"
        )
    return parts


def redact_url(url: str) -> str:
    """Replace the parts of a URL that may be a secret: user, password, query and fragment."""
    hidden = re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1***@", url)
    bare, mark, _ = hidden.partition("?")
    return f"{bare}?***" if mark else hidden.partition("#")[0]
