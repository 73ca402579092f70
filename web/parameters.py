"""What a request asks for, checked: every function raises an HTTPException that says what is wrong."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

T = TypeVar("T")

LIMIT = 100
#: Bytes of a body.
BODY = 1_048_576
MOST = 500
ITEMS = 2**31 - 1
IDS = 2**63 - 1


def limit(request: Request) -> int:
    """`limit`: rows of a page."""
    return _integer(request, "limit", LIMIT, least=1, most=MOST)


def cursor(request: Request, most: int) -> int | None:
    """`after`: where the page begins, as the page before it said in `next`."""
    return _integer(request, "after", 0, least=0, most=most) if "after" in request.query_params else None


def stage(request: Request) -> int | None:
    """`stage`: which of a job's stages."""
    return _integer(request, "stage", 0, least=0, most=ITEMS) if "stage" in request.query_params else None


def choice(request: Request, name: str, choices: Sequence[str]) -> str | None:
    """One of a few words."""
    value = request.query_params.get(name)
    if value and value not in choices:
        raise HTTPException(400, f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value or None


def text(request: Request, name: str) -> str | None:
    """Any words that the database could hold."""
    value = request.query_params.get(name)
    if value and "\x00" in value:
        raise HTTPException(400, f"{name} holds a NUL character, which no stored text does")
    return value or None


def job(request: Request) -> int:
    """The job's id in the path; what can't be an id is an unknown job."""
    return _number(request, "job", "job", IDS)


def item(request: Request) -> int:
    """The item's number in the path."""
    return _number(request, "item", f"item of job {request.path_params['job']}", ITEMS)


async def body(request: Request, kind: type[T]) -> T:
    """The JSON document that was sent, checked; nothing is an empty one."""
    sent = b""
    async for part in request.stream():
        sent += part
        if len(sent) > BODY:
            raise HTTPException(413, f"the body is larger than {BODY} bytes")
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent and media != "application/json":
        raise HTTPException(415, f"the body must be application/json, not {media or 'of no type'}")
    try:
        return msgspec.json.decode(sent or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise HTTPException(422, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from None


def _number(request: Request, name: str, what: str, most: int) -> int:
    value = request.path_params[name]
    if not _digits(value) or int(value) > most:
        raise HTTPException(404, f"there is no {what} {value[:40]!r}")
    return int(value)


def _integer(request: Request, name: str, default: int, *, least: int, most: int) -> int:
    value = request.query_params.get(name, str(default))
    if not _digits(value) or not least <= int(value) <= most:
        raise HTTPException(400, f"{name} must be a whole number from {least} to {most}, not {value[:40]!r}")
    return int(value)


def _digits(value: str) -> bool:
    # Python refuses to make an integer of thousands of digits.
    return value.isascii() and value.isdigit() and len(value) <= len(str(IDS))
