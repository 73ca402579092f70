"""What Dramatiq logs of an attempt never ends its thread."""

import io
import logging
from collections.abc import Callable

import pytest

from callboard.middleware.tracking import make_formattable


class WithoutCause(ValueError):
    """Python can't ask for its cause."""

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError("no cause")


def bad_syntax() -> BaseException:
    """A SyntaxError whose text is no text, as a parser in C may make it."""
    error = SyntaxError("no text")
    error.text = 5  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ValueError("plain"), "ValueError: plain"),
        (bad_syntax, "SyntaxError: no text"),
        (WithoutCause, "test_tracking.WithoutCause: "),
    ],
)
def test_an_exception_that_can_not_be_formatted_is_logged(make: Callable[[], BaseException], text: str) -> None:
    written = io.StringIO()
    logger = logging.getLogger("callboard.test of odd errors")
    logger.addHandler(logging.StreamHandler(written))
    logger.addFilter(make_formattable)
    try:
        raise make()  # noqa: TRY301
    except BaseException:
        logger.exception("the attempt failed")
    assert "raise make()" in written.getvalue()
    assert text in written.getvalue()
