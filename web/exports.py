"""The export of a job's items, as a stream."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import msgspec
from starlette.responses import Response, StreamingResponse

from callboard.sql.reads import exports, queries
from callboard.sql.states import ItemState
from callboard.web.endpoint import LINES, Call, NoBody
from callboard.web.items import Error

#: The media types of the formats.
TYPES = {"csv": "text/csv", "ndjson": LINES}


class ExportQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Which items, and the format. Without a filter all items; else the items that match all given filters."""

    format: Literal["csv", "ndjson"] = "ndjson"
    state: ItemState | None = None
    error: Error = None


async def export(call: Call[ExportQuery, NoBody]) -> Response:
    """Export a job's items with arguments, results and errors.

    The items are streamed page by page; an item that ends meanwhile may or may not be included. For a job of stages,
    the items of all stages are sent, stage by stage. An interrupted stream has no regular end of chunked encoding.
    """
    found = await call.find_job(call.job)
    jobs = [stage["job"] for stage in found["stages"]] or [call.job]
    form = call.query.format
    headers = {"Content-Disposition": f'attachment; filename="job-{call.job}.{form}"'}
    return StreamingResponse(_stream(call, jobs), media_type=TYPES[form], headers=headers)


async def _stream(call: Call[ExportQuery, NoBody], jobs: Sequence[int]) -> AsyncIterator[bytes]:
    wanted = call.query
    if wanted.format == "csv":
        yield exports.csv_header()
    write = exports.csv_lines if wanted.format == "csv" else exports.json_lines
    for job in jobs:
        after: int | None = -1
        while after is not None:
            asked = queries.items(job, state=wanted.state, error=wanted.error, after=after, limit=exports.PAGE_ITEMS)
            page, after = await call.read(asked)
            whole: list[dict[str, Any]] = []
            for item in page:
                query = exports.rest(item)
                if query is None:
                    whole.append(item)
                    continue
                found = await call.read(query)
                yield write([*whole, found or item])  # a large item is sent before others are read, to save memory
                whole = []
            if whole:
                yield write(whole)
