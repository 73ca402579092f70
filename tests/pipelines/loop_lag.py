"""Measures in a worker how late its event loop is. The worst lag, in seconds, is in the file that LOOP_LAG names.

It is counted by a thread in its own steps: a process that stands still, or waits for a processor, takes none.
"""

import os
import threading
import time
from pathlib import Path

import dramatiq
from dramatiq.asyncio import get_event_loop_thread

MODULE, FILE = "tests.pipelines.loop_lag", "LOOP_LAG"
STEP_SECONDS = 0.02


class LoopLag(dramatiq.Middleware):
    """Asks the event loop for a sign of life, again and again."""

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        threading.Thread(target=measure, args=(Path(os.environ[FILE]),), daemon=True).start()


def measure(file: Path) -> None:
    worst, thread = -STEP_SECONDS, get_event_loop_thread()  # a loop that is never late has a lag of 0
    assert thread is not None
    while True:
        lag, alive = 0.0, threading.Event()
        thread.loop.call_soon_threadsafe(alive.set)
        while not alive.wait(STEP_SECONDS):
            lag += STEP_SECONDS
        if lag > worst:
            worst = lag
            whole = file.with_suffix(".new")
            whole.write_text(f"{worst:.3f}", encoding="ascii")
            whole.replace(file)
        time.sleep(0.01)


if FILE in os.environ:
    dramatiq.get_broker().add_middleware(LoopLag())
