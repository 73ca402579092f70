"""The templates of all pages, the login's too."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_METHODS = frozenset(dir(dict))


class _Templates(Environment):
    """Takes an entry of a dict at once: Jinja asks for an attribute before, and the error that it gets costs much."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """See `jinja2.Environment`."""
        is_entry = isinstance(obj, dict) and attribute in obj and attribute not in _METHODS
        return obj[attribute] if is_entry else super().getattr(obj, attribute)


#: Makes them: what others wrote is escaped, and a name that a page was not given is an error.
JINJA = _Templates(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
