"""Shorter periods of the product in a worker, imported beside its actors.

CALLBOARD_TEST_SHORT_PERIODS holds the seconds after which a silent worker counts as dead, lost messages are found, and
callbacks are claimed anew.
"""

import os

from callboard.middleware.process import heartbeat
from callboard.middleware.sweep import sweep
from callboard.sql import timings
from callboard.sql.writes import callbacks

MODULE = "tests.faults.rig.periods"
SHORT_PERIODS = "CALLBOARD_TEST_SHORT_PERIODS"


def shorten(seconds: float) -> None:
    """Set the periods of this process."""
    timings.DEAD_AFTER_SECONDS = seconds
    timings.SILENT_SECONDS = 2 * seconds
    heartbeat.BEAT_SECONDS = seconds / 8
    sweep.SEARCH_SECONDS = sweep.SAMPLE_SECONDS = seconds / 2
    sweep.PERIOD_SECONDS = 0.5
    sweep.REST_SECONDS = seconds / 2
    callbacks.WEBHOOK_LEASE_SECONDS = callbacks.MESSAGE_LEASE_SECONDS = seconds


if os.environ.get(SHORT_PERIODS):
    shorten(float(os.environ[SHORT_PERIODS]))
