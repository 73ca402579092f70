"""The path of a request within the app."""

from starlette.requests import Request


def path_within(request: Request) -> str:
    """The path below the prefix that the app is mounted at, as the routes see it."""
    path: str = request.scope["path"]
    prefix: str = request.scope.get("root_path", "")
    rest = path.removeprefix(prefix)
    return rest if rest.startswith("/") or not rest else path
