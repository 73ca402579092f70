"""The page /docs: the OpenAPI document as HTML, without scripts or resources of other sites."""

import re
from importlib.metadata import version
from typing import Any

from markupsafe import Markup, escape
from starlette.responses import Response

from callboard.web import openapi
from callboard.web.endpoint import Call, NoBody
from callboard.web.endpoints import ENDPOINTS
from callboard.web.pages.page import render
from callboard.web.parameters import NoQuery

Schema = dict[str, Any]


async def docs(call: Call[NoQuery, NoBody]) -> Response:
    """Show the endpoints and types of the API."""
    document = openapi.document(ENDPOINTS, version("callboard"))
    operations = [
        {"method": method.upper(), "path": path, **operation, "body": _body(operation), "answer": _answer(operation)}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    groups: dict[str, list[Schema]] = {}
    for one in operations:
        groups.setdefault(one["tags"][0], []).append(one)
    schemas = document["components"]["schemas"]
    shown = {"here": "API", "groups": groups, "schemas": schemas, "kind": kind, "prose": prose}
    return render(call.request, "docs.html", shown)


def prose(text: str) -> Markup:
    """Return a text as HTML, with its words between backquotes as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


def kind(schema: Schema) -> list[tuple[str, str]]:
    """Return the description of a type as parts: each is a text and the name of the schema it links to, or ''."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return [(name, name)]
    if "anyOf" in schema:
        parts = [kind(one) for one in schema["anyOf"]]
        return [word for n, part in enumerate(parts) for word in ([(" or ", "")] if n else []) + part]
    if "enum" in schema:
        return [(", ".join(map(str, schema["enum"])), "")]
    if schema.get("type") == "array":
        return [("list of ", ""), *kind(schema.get("items", {}))]
    if "format" in schema:
        return [(schema["format"], "")]
    bounds = [schema[name] for name in ("minimum", "maximum") if name in schema]
    more = f" from {bounds[0]}" + (f" to {bounds[1]}" if len(bounds) > 1 else "") if "minimum" in schema else ""
    return [(f"{schema.get('type', 'anything')}{more}", "")]


def _body(operation: Schema) -> Schema | None:
    content = operation.get("requestBody", {}).get("content", {})
    return next((one["schema"] for one in content.values()), None)


def _answer(operation: Schema) -> Schema | None:
    done = next(one for status, one in operation["responses"].items() if status.startswith("2"))
    for media, one in done.get("content", {}).items():
        return one["schema"] if media == "application/json" else {"type": media}
    return None
