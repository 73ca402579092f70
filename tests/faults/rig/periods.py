"""Shorter periods of the product in a worker, imported beside its actors.

CALLBOARD_TEST_SHORT_PERIODS holds the seconds after which lost messages are found and callbacks are claimed anew;
CALLBOARD_TEST_DEAD_AFTER those after which a silent worker counts as dead, if not the product's.
"""

import os

from callboard.middleware.process import heartbeat
from callboard.middleware.sweep import sweep
from callboard.sql import timings

MODULE = "tests.faults.rig.periods"
SHORT_PERIODS, DEAD_AFTER = "CALLBOARD_TEST_SHORT_PERIODS", "CALLBOARD_TEST_DEAD_AFTER"


def shorten(seconds: float) -> None:
    """Set the periods of this process, but for those of its heartbeat."""
    sweep.SEARCH_SECONDS = sweep.SAMPLE_SECONDS = seconds / 2
    sweep.PERIOD_SECONDS = 0.5
    sweep.REST_SECONDS = seconds / 2
    timings.WEBHOOK_LEASE_SECONDS = timings.MESSAGE_LEASE_SECONDS = seconds


def die_after(seconds: float) -> None:
    """Set after how many seconds this process takes a silent one for dead, and beat so often that it is not silent."""
    timings.DEAD_AFTER_SECONDS = seconds
    timings.SILENT_SECONDS = 2 * seconds
    heartbeat.BEAT_SECONDS = seconds / 8


if os.environ.get(DEAD_AFTER):
    die_after(float(os.environ[DEAD_AFTER]))
if os.environ.get(SHORT_PERIODS):
    shorten(float(os.environ[SHORT_PERIODS]))
