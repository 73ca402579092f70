"""The body of a request, without a server."""

import asyncio

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from callboard.web import parameters
from callboard.web.bulk import ManyJobs
from callboard.web.endpoint import NoBody


def test_a_sender_that_leaves_before_its_body_is_whole_is_no_error_of_the_app() -> None:
    """As one that gave up while the database was away: the log had a traceback for each."""
    parts: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return parts.pop(0)

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(parameters.body(request, NoBody))
    assert refused.value.status_code == 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[]", "the body must be object, not array"),
        (b"{}", "the body must have the field action"),
        (b'{"action": "pause", "reason": [1]}', "reason must be str or null, not array"),
        (
            b'{"action": "pause", "filter": {"limit": 1}}',
            (
                "filter.limit is unknown; known are q, state, actor, tenant, key, name, metadata, created_after,"
                " created_before, ended_after, standing, stalled, failing"
            ),
        ),
        (b'{"action": "pause", "ids": []}', "ids must be array of length >= 1"),
        (b'{"action": "pause", "filter": {"state": ["a"]}}', "filter.state[0] has an invalid enum value 'a'"),
    ],
)
def test_what_is_wrong_with_a_field_is_said_in_a_sentence(body: bytes, said: str) -> None:
    with pytest.raises(HTTPException) as refused:
        parameters.decode(body, ManyJobs)
    assert refused.value.detail == said
