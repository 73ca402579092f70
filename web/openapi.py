"""The OpenAPI document, built from the endpoints and the types of their input and output."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from callboard.web import answers, parameters
from callboard.web.endpoint import Call, Endpoint, NoBody
from callboard.web.parameters import NoQuery
from callboard.web.problems import Json

Schema = dict[str, Any]

#: The reference to a schema in the document.
SCHEMAS = "#/components/schemas/{name}"
#: The media types of a document, and of a stream of events.
JSON, EVENTS = "application/json", "text/event-stream"
#: The meaning of problems: of every endpoint, of endpoints with an id in the path, and of changes.
ALWAYS = {
    400: "A parameter is invalid.",
    401: "The request needs a login.",
    403: "The login does not allow this, or a page of another site sent it.",
    421: "The app does not accept this host name.",
    503: "The database does not answer in time, or there are too many changes or streamed bodies at once.",
}
OF_A_PATH = {404: "There is no such thing, or this login may not see it."}
OF_A_CHANGE = {
    408: "The body arrived too slowly.",
    409: "This is not possible in the present state of the job.",
    413: "The body is too large.",
    415: "The body has another type.",
    422: "A field of the body is invalid.",
}


class WrongPart(msgspec.Struct):
    """An invalid part of a request."""

    pointer: str
    detail: str


class Problem(msgspec.Struct):
    """An error (RFC 9457): `detail` says what is wrong and what to do, `code` is its name for programs."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[WrongPart] | msgspec.UnsetType = msgspec.UNSET
    line: int | msgspec.UnsetType = msgspec.UNSET


def endpoint(endpoints: Sequence[Endpoint], version: str) -> Endpoint:
    """Return the endpoint that serves the document of these endpoints."""

    async def openapi(call: Call[NoQuery, NoBody]) -> Response:
        """Get this document."""
        return Json({**document(endpoints, version), "servers": [{"url": call.request.scope["root_path"]}]})

    return Endpoint("GET", "/openapi.json", openapi, None, produces=(JSON,))


def document(endpoints: Sequence[Endpoint], version: str) -> Schema:
    """Return the OpenAPI 3.1 document."""
    types: set[type[msgspec.Struct]] = {Problem, answers.Trial}
    for one in endpoints:
        types |= {one.query, one.body, *([one.answer] if one.answer else [])}
    ordered = sorted(types, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=SCHEMAS)
    queries = {one.query.__name__ for one in endpoints}
    paths: Schema = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Callboard",
            "version": version,
            "description": "Jobs of many items: submit, follow and control them.",
        },
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": {name: one for name, one in schemas.items() if name not in queries},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "callboard",
                    "description": "The cookie of a login. Its name also contains the port and the prefix of the app.",
                },
            },
        },
    }


def _operation(one: Endpoint, schemas: Schema) -> Schema:
    summary, _, more = inspect.cleandoc(one.handler.__doc__ or "").partition("\n\n")
    operation: Schema = {
        "operationId": one.name,
        "tags": [one.handler.__module__.rpartition(".")[2]],
        "summary": summary.replace("\n", " ").removesuffix("."),
        "description": "\n\n".join(filter(None, (more, f"Needs the scope `{one.scope}`."))),
        "parameters": [*_path_parameters(one.path), *_query_parameters(schemas[one.query.__name__])],
        "responses": _responses(one),
    }
    if not one.reads and one.method != "DELETE":
        # A stream of lines has no schema.
        bodies = {JSON: _reference(one.body)}
        content = {kind: {"schema": bodies.get(kind, {"type": "string"})} for kind in one.consumes}
        needed = bool(schemas[one.body.__name__].get("required"))
        operation["requestBody"] = {"content": content, "required": needed}
    return operation


def _path_parameters(path: str) -> list[Schema]:
    integer: Schema = {"type": "integer", "minimum": 0}
    schemas = {"job": integer, "item": integer, "token": integer}
    return [
        {"name": name, "in": "path", "required": True, "schema": schemas.get(name, {"type": "string"})}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query_parameters(schema: Schema) -> list[Schema]:
    """Return the fields of a query. OpenAPI can't express a field with many entries, such as `metadata.x`."""
    found = []
    for name, field in schema.get("properties", {}).items():
        rule = {key: value for key, value in field.items() if key != "description"}
        plain = [one for one in rule.get("anyOf", [rule]) if one.get("type") != "null"]
        if any(one.get("type") == "object" for one in plain):
            continue
        default = {"default": rule["default"]} if rule.get("default") is not None else {}
        one: Schema = {"name": name, "in": "query", "schema": {**plain[0], **default}}
        if "description" in field:
            one["description"] = field["description"]
        found.append(one)
    return found


def _responses(one: Endpoint) -> Schema:
    problems = {
        **ALWAYS,
        **(OF_A_PATH if "{" in one.path else {}),
        **({} if one.reads else OF_A_CHANGE),
        **one.problems,
    }
    content = _answers(one)
    done: Schema = {str(one.status): {"description": "Done."}}
    if content:
        done[str(one.status)]["content"] = content
    if one.replays:
        before = {"description": "An earlier request with this key has done it."}
        done["200"] = {**done[str(one.status)], **before}
    if issubclass(one.query, parameters.DryRun):
        done["200"] = _done_or_tried(one)
    if one.reads and one.answer is not None:
        done["304"] = {"description": "The answer has not changed since the ETag of the request."}
    if EVENTS in content:
        done["204"] = {"description": "The job has ended, and the client has its last event, by `Last-Event-ID`."}
    problem = {"application/problem+json": {"schema": _reference(Problem)}}
    return done | {
        str(status): {"description": meaning, "content": problem} for status, meaning in sorted(problems.items())
    }


def _answers(one: Endpoint) -> Schema:
    """Return the media types of the answer, each with its schema."""
    if one.answer is not None:
        return {JSON: {"schema": _reference(one.answer)}}
    # OpenAPI 3.1 can't describe an event.
    known: Schema = {EVENTS: {}, JSON: {"schema": {"type": "object"}}}
    return {kind: known.get(kind, {"schema": {"type": "string"}}) for kind in one.produces}


def _done_or_tried(one: Endpoint) -> Schema:
    trial = _reference(answers.Trial)
    schema = {"anyOf": [_reference(one.answer), trial]} if one.answer else trial
    content = {JSON: {"schema": schema}}
    return {"description": "Done; or, with `dry_run`, the number of items that would change.", "content": content}


def _reference(kind: type[msgspec.Struct]) -> Schema:
    return {"$ref": SCHEMAS.format(name=kind.__name__)}
