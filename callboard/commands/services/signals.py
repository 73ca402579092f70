"""Signals of this process: which of them end it, which it ignores, and waiting for one."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType


def ends_on_sigterm() -> AbstractContextManager[None]:
    """In its block SIGTERM and SIGHUP end this process as Ctrl-C does: every `finally` runs."""
    return _handled((signal.SIGTERM, signal.SIGHUP), _exit)


def ignores_signals() -> AbstractContextManager[None]:
    """In its block no signal but SIGKILL ends this process: for a shutdown that has time limits of its own."""
    return _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)


def wait_for_the_end() -> None:
    """Block until Ctrl-C, SIGTERM or SIGHUP, and return normally: exit code 0. Needs `ends_on_sigterm` around it."""
    with suppress(KeyboardInterrupt, SystemExit):
        while True:
            signal.pause()


@contextmanager
def _handled(
    numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], object] | signal.Handlers
) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
