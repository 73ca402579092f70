"""Carries the running item, and the job of a `job` block, into other threads."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from callboard.middleware.message.attempt import current_attempt
from callboard.middleware.submission.enqueue import open_blocks

P = ParamSpec("P")
T = TypeVar("T")


def in_context(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that runs for the current item, and in the current `job` block, in any thread.

    threading.Thread(target=callboard.in_context(watch)).start()

    Tasks, `asyncio.to_thread` and a `ThreadPoolExecutor` need no help.
    """
    if not callable(function):
        raise TypeError(f"in_context takes a function, not {function!r:.100}")
    context = copy_context()

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        # A copy, because a context can't be entered twice at the same time.
        return context.copy().run(function, *args, **kwargs)

    return run


def carry_into_pools() -> None:
    """Make functions that an item, or a `job` block, submits to a ThreadPoolExecutor run for it: Python's pools carry
    no context.

    This replaces the method of the class, once per process, because actors create their own pools.
    """
    plain: Any = ThreadPoolExecutor.submit
    if getattr(plain, "carries", False):
        return

    @wraps(plain)
    def submit(self: ThreadPoolExecutor, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if current_attempt.get() is not None or open_blocks.get():
            fn = in_context(fn)
        done: Future[T] = plain(self, fn, *args, **kwargs)
        return done

    submit.carries = True  # type: ignore[attr-defined]
    ThreadPoolExecutor.submit = submit  # type: ignore[assignment,method-assign]
