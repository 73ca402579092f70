"""The parameters and the body of a request, checked against their types. All functions raise `Refused`."""

import asyncio
import codecs
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from callboard.sql import timings
from callboard.sql.reads import queries

T = TypeVar("T", bound=msgspec.Struct)

#: Rows of a page: default and maximum.
LIMIT, MOST = 100, 500
#: Maximum bytes of a body and of a form, and maximum seconds until it has arrived.
BODY_BYTES, FORM_BYTES = 1_048_576, 65_536
BODY_SECONDS = 30.0
#: The largest item number, and the largest id.
ITEMS, IDS = timings.MAX_ITEM, queries.MAX_ID

Limit: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MOST, description="maximum rows of a page")]
After: TypeAlias = Annotated[str | None, msgspec.Meta(description="`next` of the previous page; empty: the first page")]


class Refused(HTTPException):
    """A request is invalid. `errors`: its invalid parts, with `pointer` and `detail`; `line`: the first bad line."""

    def __init__(
        self, status: int, detail: str, *, code: str, errors: list[dict[str, str]] | None = None,
        line: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, detail)
        self.code = code
        self.errors = errors or []
        self.line = line


class NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    """No parameters."""


class DryRun(msgspec.Struct, forbid_unknown_fields=True):
    """Whether to change nothing, and only return the number of items that would change."""

    dry_run: bool = False


class Page(msgspec.Struct, forbid_unknown_fields=True):
    """Which page of a list."""

    limit: Limit = LIMIT
    after: After = None


def query(request: Request, kind: type[T]) -> T:
    """Return the query's parameters. An empty parameter counts as missing. A field of a list type takes repeated
    parameters, and `metadata.x` sets the entry x of a field `metadata`.
    """
    return _texts(400, "parameter", request.query_params.multi_items(), kind)


def fields(form: Iterable[tuple[str, str]], kind: type[T]) -> T:
    """Return the fields of a form, with the rules of `query`."""
    return _texts(422, "field", form, kind)


#: Replacements in msgspec's errors, so that they continue a sentence that begins with the name of a field.
PLAIN = (
    ("Expected ", "must be "), ("Object missing required field", "must have the field"), ("Invalid", "has an invalid"),
    (", got ", ", not "), (" | ", " or "), ("`", ""),
)  # fmt: skip
#: The types of a struct's fields, cached, because resolving them takes longer than reading the parameters.
_hints = cache(get_type_hints)


def _texts(status: int, code: str, pairs: Iterable[tuple[str, str]], kind: type[T]) -> T:
    hints = _hints(kind)
    given: dict[str, Any] = {}
    for name, value in pairs:
        if "\x00" in name + value:
            raise wrong(name.replace("\x00", ""), "must not contain a NUL character")
        if value or name in ("after", "limit"):
            _give(given, hints, name, value)
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(status, code, error, kind) from None


def _give(given: dict[str, Any], hints: dict[str, Any], name: str, value: str) -> None:
    field, _, entry = name.partition(".")
    if entry and _is(hints.get(field), dict):
        given.setdefault(field, {})[entry] = value
    elif name not in hints or _is(hints[name], dict):
        names = ", ".join(f"{one}.NAME" if _is(hint, dict) else one for one, hint in hints.items())
        raise wrong(name, f"is no parameter here; {f'known are {names}' if names else 'there are none'}")
    elif _is(hints[name], list):
        given.setdefault(name, []).append(value)
    elif name in given:
        raise wrong(name, "is given twice")
    else:
        given[name] = value


async def body(request: Request, kind: type[T], consumes: Sequence[str] = ("application/json",)) -> T:
    """Return the body, a JSON document of this type; an empty body is an empty object. `consumes`: its media types."""
    sent = await _read(request, BODY_BYTES, *consumes[1:])
    media = media_type(request)
    if sent and media != "application/json":
        raise Refused(415, f"the body must be {' or '.join(consumes)}, not {media or 'of no type'}", code="media_type")
    return decode(sent or b"{}", kind)


async def form(request: Request) -> list[tuple[str, str]]:
    """Return the fields of a form that a page sent."""
    sent = await _read(request, FORM_BYTES)
    if sent and (media := media_type(request)) != "application/x-www-form-urlencoded":
        raise Refused(415, f"the body must be a form, not {media or 'of no type'}", code="media_type")
    return parse_qsl(sent.decode("utf-8", "replace"), keep_blank_values=True)


async def _read(request: Request, most: int, *larger: str) -> bytes:
    """Return the body, which must arrive within BODY_SECONDS, because a slow sender would keep the request open
    forever.

    `larger`: a media type in which a larger body may be sent.
    """
    sent = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                sent += part
                if len(sent) > most:
                    advice = f": send it as {larger[0]}" if larger else ""
                    raise Refused(413, f"the body is larger than {most} bytes{advice}", code="too_large")
    except TimeoutError:
        raise Refused(408, f"the body was incomplete after {BODY_SECONDS:.0f} s: send it faster", code="slow") from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the body was complete: send it again") from None
    return bytes(sent)


def decode(document: bytes, kind: type[T]) -> T:
    """Return the JSON document as this type; a byte order mark is skipped."""
    try:
        return msgspec.json.decode(document.removeprefix(codecs.BOM_UTF8), type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(422, "field", error, kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"the body is not valid JSON: {error}", code="json") from None


def media_type(request: Request) -> str:
    """Return the media type of the body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def cursor(after: str | None, rows: str, most: int = IDS) -> int | None:
    """Return the position that `after` encodes in the list of these rows; None for the first page."""
    if after is None:
        return None
    found = re.fullmatch(rf"{rows}-(\d{{1,19}})", after, re.ASCII)
    if found is None or int(found[1]) > most:
        raise wrong("after", f"must be `next` of a page of {rows}, not {after[:40]!r}")
    return int(found[1])


def next_page(position: int | None, rows: str) -> str | None:
    """Return the cursor of the page that begins after `position`; None if there is none."""
    return None if position is None else f"{rows}-{position}"


def path_within(request: Request) -> str:
    """Return the path below the app's prefix, as the routes see it."""
    path: str = request.scope["path"]
    prefix: str = request.scope.get("root_path", "")
    rest = path.removeprefix(prefix)
    return rest if rest.startswith("/") or not rest else path


def path_number(request: Request, name: str, most: int, noun: str) -> int:
    """Return a number of the path. Raises HTTPException 404 for a text that can't be an id."""
    value = str(request.path_params[name])
    found = number(value, most)
    if found is None:
        raise HTTPException(404, f"there is no {noun} {value[:40]!r}")
    return found


def number(text: str, most: int) -> int | None:
    """Return the number from 0 to `most` that the text is; None for another text."""
    # The length first, because Python refuses to parse an integer of thousands of digits.
    is_number = len(text) <= len(str(IDS)) and text.isascii() and text.isdigit() and int(text) <= most
    return int(text) if is_number else None


def wrong(name: str, why: str) -> Refused:
    """Return the error for an invalid parameter."""
    text = f"{name[:40]} {why}"
    return Refused(400, text, code="parameter", errors=[{"pointer": f"#/{name[:40]}", "detail": why}])


def _invalid(status: int, code: str, error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> Refused:
    """Return the error that names the invalid part and its allowed values. `kind`: the expected type."""
    text, _, where = str(error).partition(" - at `$")
    place = where.rstrip("`").lstrip(".")
    rule = _rule(kind, place)
    if code == "parameter":
        place = place.partition("[")[0]  # of a repeated parameter
    unknown = re.search(r"unknown field `(.*)`", text)
    if unknown:
        names = ", ".join(_struct_at(kind, place).__struct_fields__)
        text, place = f"is unknown; known are {names}", ".".join(filter(None, (place, unknown[1])))
    elif rule:
        text = f"must be {rule}"
    else:
        for its_words, words in PLAIN:
            text = text.replace(its_words, words)
    pointer = "#/" + re.sub(r"\[(\w+)\]", r".\1", place).replace(".", "/")
    detail = f"{place or 'the body'} {text}"
    return Refused(status, detail, code=code, errors=[{"pointer": pointer, "detail": text}])


def _rule(kind: type[msgspec.Struct], place: str) -> str | None:
    """Return the allowed values of a top-level field as text; None if its type is too complex for a few words."""
    (_, schemas) = msgspec.json.schema_components([kind])
    field, entry, _ = place.partition("[")
    schema = schemas.get(kind.__name__, {}).get("properties", {}).get(field)
    choices = schema.get("anyOf", [schema]) if schema else ()
    for one in [choice.get("items", choice) if entry else choice for choice in choices]:
        if "enum" in one:
            return f"one of {', '.join(map(str, one['enum']))}"
        if one.get("type") == "integer":
            least, most = one.get("minimum"), one.get("maximum")
            return "a whole number" + (f" from {least} to {most}" if None not in (least, most) else "")
        if one.get("type") == "boolean":
            return "true or false"
    return None


def _struct_at(kind: type[msgspec.Struct], place: str) -> type[msgspec.Struct]:
    """Return the struct at a place within this one, like `filter` or `stages[0]`; '': itself."""
    for name in re.findall(r"[A-Za-z_]+", place):
        inner = list[Any]([_hints(kind)[name]])
        while not (isinstance(inner[0], type) and issubclass(inner[0], msgspec.Struct)):
            inner = [*get_args(inner[0]), *inner[1:]]
        kind = inner[0]
    return kind


def _is(hint: Any, kind: type) -> bool:
    """Return whether a type is this generic type, alone or in a union with None."""
    return any(get_origin(one) is kind for one in (hint, *get_args(hint)))
