"""The pages are static files; their scripts fetch the data from the API, under the prefix that the app has."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from callboard.web import parameters

STATIC = Path(__file__).parent / "static"

static = StaticFiles(directory=STATIC)


async def board(_request: Request) -> FileResponse:
    """GET /: the jobs."""
    return FileResponse(STATIC / "board.html")


async def job(request: Request) -> FileResponse:
    """GET /jobs/{job}: one job."""
    parameters.path_number(request, "job", parameters.IDS, "job")
    return FileResponse(STATIC / "job.html")
