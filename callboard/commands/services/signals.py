"""Signals of this process: which ones end it, which ones it ignores, and waiting for one."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType


def ends_on_sigterm() -> AbstractContextManager[None]:
    """In its block SIGTERM and SIGHUP end this process like Ctrl-C: every `finally` runs."""
    return _handled((signal.SIGTERM, signal.SIGHUP), _exit)


def ignores_signals() -> AbstractContextManager[None]:
    """In its block only SIGKILL ends this process: for a shutdown with its own time limits."""
    return _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)


@contextmanager
def ends_at_second_ctrl_c(text: str) -> Iterator[None]:
    """In its block the first Ctrl-C prints `text` on stderr and raises KeyboardInterrupt; the second one ends this
    process at once, whatever it waits for. If Ctrl-C is ignored, as in the background of a shell, it stays ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(2, f"{text}\n".encode())  # not by a stream, because the signal may have interrupted a write to it
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with _handled((signal.SIGINT,), interrupt):
        yield


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
