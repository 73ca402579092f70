"""The OpenAPI document, made of the endpoints and of the types of what they take and answer."""

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

#: Where a schema of the document stands.
SCHEMAS = "#/components/schemas/{name}"
#: The types of a document, and of a stream of events.
JSON, EVENTS = "application/json", "text/event-stream"
#: The meaning of each problem: of every endpoint, of one with an id in its path, and of a change.
ALWAYS = {
    400: "A parameter makes no sense.",
    401: "The request needs a login.",
    403: "The login does not allow this, or a page of another site sent it.",
    421: "The app does not answer to this host name.",
    503: "The database does not answer, or not in time; or too many changes or bodies of lines come at a time.",
}
OF_A_PATH = {404: "There is no such thing, or not for this login."}
OF_A_CHANGE = {
    408: "The body came too slowly.",
    409: "This makes no sense in the state that the job is in.",
    413: "The body is too large.",
    415: "The body has another type.",
    422: "A field of the body makes no sense.",
}


class WrongPart(msgspec.Struct):
    """A part of a request that makes no sense."""

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
    """The endpoint that serves the document of these endpoints."""

    async def openapi(call: Call[NoQuery, NoBody]) -> Response:
        """Get this document."""
        return Json({**document(endpoints, version), "servers": [{"url": call.request.scope["root_path"]}]})

    return Endpoint("GET", "/openapi.json", openapi, None, produces=(JSON,))


def document(endpoints: Sequence[Endpoint], version: str) -> Schema:
    """The document as OpenAPI 3.1 has it."""
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
                    "description": "The cookie of a login. Its name goes on with the port and the prefix of the app.",
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
        # Of a stream of lines it says nothing.
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
    """The fields of a query. A field of many entries, as `metadata.x`, has no form in OpenAPI but its description."""
    found = []
    for name, field in schema.get("properties", {}).items():
        said = {key: value for key, value in field.items() if key != "description"}
        plain = [one for one in said.get("anyOf", [said]) if one.get("type") != "null"]
        if any(one.get("type") == "object" for one in plain):
            continue
        default = {"default": said["default"]} if said.get("default") is not None else {}
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
        before = {"description": "It was done before, by a request with this key."}
        done["200"] = {**done[str(one.status)], **before}
    if issubclass(one.query, parameters.DryRun):
        done["200"] = _done_or_tried(one)
    if one.reads and one.answer is not None:
        done["304"] = {"description": "The answer is the one whose ETag the request has."}
    if EVENTS in content:
        done["204"] = {"description": "The job is over, and `Last-Event-ID` says that its end is known."}
    problem = {"application/problem+json": {"schema": _reference(Problem)}}
    return done | {str(status): {"description": said, "content": problem} for status, said in sorted(problems.items())}


def _answers(one: Endpoint) -> Schema:
    """The types of its answer, each with its schema."""
    if one.answer is not None:
        return {JSON: {"schema": _reference(one.answer)}}
    # OpenAPI 3.1 can't describe an event.
    known: Schema = {EVENTS: {}, JSON: {"schema": {"type": "object"}}}
    return {kind: known.get(kind, {"schema": {"type": "string"}}) for kind in one.produces}


def _done_or_tried(one: Endpoint) -> Schema:
    trial = _reference(answers.Trial)
    schema = {"anyOf": [_reference(one.answer), trial]} if one.answer else trial
    content = {JSON: {"schema": schema}}
    return {"description": "Done, or, with `dry_run`, what it would concern.", "content": content}


def _reference(kind: type[msgspec.Struct]) -> Schema:
    return {"$ref": SCHEMAS.format(name=kind.__name__)}
