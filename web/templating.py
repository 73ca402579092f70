"""The templates of all pages, the login's too."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

#: Makes them: what others wrote is escaped, and a name that a page was not given is an error.
JINJA = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
