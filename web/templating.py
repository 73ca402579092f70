"""The templates of all pages, including the login."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_METHODS = frozenset(dir(dict))


class _Templates(Environment):
    """Looks up an entry of a dict first: Jinja would try an attribute first, and its AttributeError is slow."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """See `jinja2.Environment`."""
        is_entry = isinstance(obj, dict) and attribute in obj and attribute not in _METHODS
        return obj[attribute] if is_entry else super().getattr(obj, attribute)


#: The environment of all templates: it escapes values, and an undefined name is an error.
JINJA = _Templates(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
