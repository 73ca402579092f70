"""The methods of a tracked broker that differ from Dramatiq's, for a broker of any class."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dramatiq
from dramatiq.common import q_name
from dramatiq.errors import QueueJoinTimeout

from callboard.middleware.hook_cache import HookCache
from callboard.middleware.message import stamp
from callboard.middleware.message.delivery import delivery_of
from callboard.middleware.publish.transport import publishing
from callboard.middleware.runtime import Runtime
from callboard.middleware.submission.enqueue import comes_off_delay_queue
from callboard.middleware.submission.threads import carry_into_pools
from callboard.middleware.tracking import Tracking, track
from callboard.sql import settings
from callboard.sql.writes import jobs

#: Seconds between two queries for the items that `join` waits for.
JOIN_SECONDS = 0.1


class TrackedBroker(dramatiq.Broker):
    """In the MRO, comes before Dramatiq's class, and after an app's own class, whose `enqueue` runs first."""

    runtime: Runtime
    _tracking: Tracking | None = None  # None while the constructor adds the middleware
    _sending: Callable[[Any], AbstractContextManager[None]] = nullcontext  # opens a span if OpenTelemetry is on

    def _track(self, runtime: Runtime) -> None:
        """Track the broker with the parts of this process."""
        carry_into_pools()
        self.runtime = runtime
        self._hooks = HookCache(self)
        self._tracking = Tracking(runtime, self._hooks)
        track(self, self._tracking)
        if settings.OPENTELEMETRY.get():
            from callboard.middleware import spans  # noqa: PLC0415 — imported only where it is on

            self._sending = spans.sending
            self.middleware.insert(1, spans.Spans())

    def start_tracking(self, database_url: str) -> None:
        """Build the parts of this process and track the broker from now on."""
        raise NotImplementedError

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """Record a message, then publish it after `delay` milliseconds; return it. Raises NotStored."""
        if comes_off_delay_queue() and (known := stamp.read(message.options)):
            # A worker without Callboard ran the item, and its retry is due. The item may have been published again
            # since.
            message.options[stamp.OPTION] = known._replace(suspect=True).option()
            return super().enqueue(message)
        with self._sending(message):
            return self.runtime.send(self, message, delay)

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call the hooks `before_<signal>`, unless the signal is silent: see `_is_silent`."""
        if self._tracking is None:
            super().emit_before(signal, *args, **kwargs)
            return
        if signal == "nack":
            self._tracking.requeue_without_actor(self, *args)
        if not _is_silent(signal, args):
            self._hooks.before(signal, *args, **kwargs)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call the hooks `after_<signal>`, unless the signal is silent: see `_is_silent`."""
        if self._tracking is None:
            super().emit_after(signal, *args, **kwargs)
        elif not _is_silent(signal, args):
            self._hooks.after(signal, *args, **kwargs)

    def flush(self, queue_name: str) -> None:
        """Drop the messages of a queue, and cancel the jobs with messages in it, or with messages to publish to it."""
        if queue_name == q_name(queue_name):
            self.runtime.drop_queue(queue_name)
        super().flush(queue_name)

    def join_items(self, queue_name: str, timeout: int | None) -> int | None:
        """Wait until all items of a queue have ended; return how much is left of `timeout`, in milliseconds (None: no
        limit).

        Raises QueueJoinTimeout. Items of paused jobs are not waited for.
        """
        end = None if timeout is None else time.monotonic() + timeout / 1000
        while self.runtime.write(lambda conn: jobs.queue_has_open_items(conn, queue_name)):
            if end is not None and time.monotonic() > end:
                raise QueueJoinTimeout(queue_name)
            time.sleep(JOIN_SECONDS)
        return None if end is None else max(1, round((end - time.monotonic()) * 1000))

    def close(self) -> None:
        """Write the last outcomes, publish the last messages, end all threads, and close the connections."""
        self.runtime.close()
        super().close()


def _is_silent(signal: str, args: tuple[Any, ...]) -> bool:
    """Return whether the hooks are not called: the message was dropped before any other middleware saw it, or the
    message is being published, and its hooks ran when it was sent.
    """
    if signal == "enqueue":
        return publishing.get()
    if signal not in ("skip_message", "ack", "nack"):
        return False
    delivery = delivery_of(args[0])
    return delivery is not None and delivery.dropped
