"""The web app: `callboard serve`, `uvicorn callboard.web:app`, or `create_app` mounted under any prefix."""

from callboard.web.app import create_app

__all__ = ["app", "create_app"]

app = create_app()
