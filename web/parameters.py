"""The parameters of a request, checked. Every function raises an HTTPException that says what is wrong."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

T = TypeVar("T")

#: Rows of a page, if nobody says how many, and at most.
LIMIT, MOST = 100, 500
#: Bytes of a body.
BODY_BYTES = 1_048_576
#: The largest number of an item, and the largest id.
ITEMS, IDS = 2**31 - 1, 2**63 - 1


def limit(request: Request) -> int:
    """`limit`: the rows of a page."""
    found = _integer(request, "limit", 1, MOST)
    return LIMIT if found is None else found


def cursor(request: Request, most: int) -> int | None:
    """`after`: the `next` of the page before; None for the first page."""
    return _integer(request, "after", 0, most)


def stage(request: Request) -> int | None:
    """`stage`: the number of one of a job's stages."""
    return _integer(request, "stage", 0, ITEMS)


def choice(request: Request, name: str, choices: Sequence[str]) -> str | None:
    """A parameter that is one of a few words; None where it is missing or empty."""
    value = request.query_params.get(name)
    if value and value not in choices:
        raise HTTPException(400, f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value or None


def flag(request: Request, name: str) -> bool | None:
    """A parameter that is true or false; None where it is missing or empty."""
    value = choice(request, name, ("true", "false"))
    return None if value is None else value == "true"


def text(request: Request, name: str) -> str | None:
    """A parameter of any text that the database can store; None where it is missing or empty."""
    value = request.query_params.get(name)
    if value and "\x00" in value:
        raise HTTPException(400, f"{name} contains a NUL character, which no stored text does")
    return value or None


def job(request: Request) -> int:
    """The job's id in the path. A text that can't be an id is an unknown job."""
    return _path(request, "job", "job", IDS)


def item(request: Request) -> int:
    """The item's number in the path."""
    return _path(request, "item", f"item of job {request.path_params['job']}", ITEMS)


async def body(request: Request, kind: type[T]) -> T:
    """The body, a JSON document of this type; an empty body is an empty object."""
    sent = b""
    async for part in request.stream():
        sent += part
        if len(sent) > BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {BODY_BYTES} bytes")
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent and media != "application/json":
        raise HTTPException(415, f"the body must be application/json, not {media or 'of no type'}")
    try:
        return msgspec.json.decode(sent or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise HTTPException(422, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from None


def _path(request: Request, name: str, noun: str, most: int) -> int:
    value = request.path_params[name]
    if not _is_number(value) or int(value) > most:
        raise HTTPException(404, f"there is no {noun} {value[:40]!r}")
    return int(value)


def _integer(request: Request, name: str, least: int, most: int) -> int | None:
    value = request.query_params.get(name)
    if value is not None and not (_is_number(value) and least <= int(value) <= most):
        raise HTTPException(400, f"{name} must be a whole number from {least} to {most}, not {value[:40]!r}")
    return None if value is None else int(value)


def _is_number(value: str) -> bool:
    # The length first: Python refuses to make an integer of thousands of digits.
    return len(value) <= len(str(IDS)) and value.isascii() and value.isdigit()
