"""A hook that fails does not keep the others from being called, and does not end the thread that calls them."""

from typing import Any

import dramatiq
import pytest
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, Retries

from callboard.middleware.hook_cache import HookCache
from callboard.middleware.tracking import make_formattable


class Leaving(Exception):
    """Who formats it gets a SystemExit from its own code."""

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise SystemExit("leaving")


class Counting(Middleware):
    calls = 0

    def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
        self.calls += 1


class Refusing(Middleware):
    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        raise SystemExit("this worker can't start")


def test_an_exception_that_leaves_when_it_is_formatted_ends_no_thread(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    broker = StubBroker(middleware=[counting, Retries()])

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # As each tracked broker has it; the logger is that of all brokers of its class.
    monkeypatch.setattr(broker.logger, "filters", [*broker.logger.filters, make_formattable])
    try:
        raise Leaving  # noqa: TRY301 — it must be handled while the hook runs
    except Leaving as error:
        HookCache(broker).after("process_message", MessageProxy(work.message()), exception=error)
    assert counting.calls == 1
    assert "Unexpected failure in after_process_message" in caplog.text


def test_a_middleware_may_end_a_worker_that_starts() -> None:
    with pytest.raises(SystemExit):
        HookCache(StubBroker(middleware=[Refusing()])).after("worker_boot", None)
