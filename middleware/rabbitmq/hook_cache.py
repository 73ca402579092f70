"""Dramatiq's signals, sent only to the middleware that listens.

Four signals a message go to some nine middleware, and most of those calls reach a method that does nothing.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dramatiq
from dramatiq.middleware import Middleware, MiddlewareError


class HookCache:
    """The hooks of a broker's middleware, looked up once for as long as its list stays the same."""

    def __init__(self, broker: dramatiq.Broker, log: logging.Logger) -> None:
        self._broker = broker
        self._log = log
        self._seen: list[Middleware] = []
        self._before: dict[str, Sequence[Callable[..., Any]]] = {}
        self._after: dict[str, Sequence[Callable[..., Any]]] = {}

    def before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """In the list's order; a MiddlewareError ends it and is raised, any other exception is logged."""
        for hook in self._hooks(self._before, "before_", signal):
            try:
                hook(*args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:  # noqa: BLE001 — as Dramatiq does: a hook's fault is none of the message's
                self._log.critical("Unexpected failure in before_%s.", signal, exc_info=True)

    def after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """In the reverse order; exceptions are logged."""
        for hook in self._hooks(self._after, "after_", signal):
            try:
                hook(*args, **kwargs)
            except Exception:  # noqa: BLE001 — likewise
                self._log.critical("Unexpected failure in after_%s.", signal, exc_info=True)

    def _hooks(
        self, known: dict[str, Sequence[Callable[..., Any]]], prefix: str, signal: str
    ) -> Sequence[Callable[..., Any]]:
        middleware = self._broker.middleware
        if middleware != self._seen:
            self._seen = list(middleware)
            self._before.clear()
            self._after.clear()
        hooks = known.get(signal)
        if hooks is None:
            name = prefix + signal
            order = middleware if prefix == "before_" else list(reversed(middleware))
            idle = getattr(Middleware, name, None)
            listening = [m for m in order if getattr(type(m), name, None) is not idle or name in vars(m)]
            hooks = known[signal] = [partial(getattr(m, name), self._broker) for m in listening]
        return hooks
