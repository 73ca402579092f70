"""The calculation of docs/scaling.md follows from its constants, and these are those of the code where it has them."""

import pytest

from callboard.middleware.journal.journal import FLUSH_SECONDS
from callboard.middleware.process.heartbeat import BEAT_SECONDS
from callboard.middleware.process.process import CONNECTIONS
from tests.support import documents

(
    TRANSACTION, OUTCOME, PUBLISHED, POLLS, _, CONNECTED, BEATS, WAL_ALONE, WAL_SHARED, DISK, RABBITMQ, WORKER,
    GATHERED,
) = [float(value) for _, value in documents.table("constant")]  # fmt: skip
ITEMS = 1_000_000_000
A_SECOND = ITEMS / 86_400


def column(processes: int) -> list[float]:
    """What is needed, in the order of the page's rows; cores are thousands of milliseconds a second."""
    each = A_SECOND / processes
    together = 1 + each * GATHERED
    transactions = A_SECOND / together
    outcomes, published, polls = (
        (transactions * TRANSACTION + A_SECOND * OUTCOME) / 1000, A_SECOND * PUBLISHED / 1000, processes * POLLS / 1000,
    )  # fmt: skip
    wal = WAL_ALONE if together < 1.5 else WAL_SHARED
    return [
        each, together, transactions, outcomes, published, polls, outcomes + published + polls, processes * BEATS,
        processes * CONNECTED, A_SECOND * wal / 1e6, ITEMS * DISK / 1e9, A_SECOND, A_SECOND * RABBITMQ / 1000,
        A_SECOND * WORKER / 1000,
    ]  # fmt: skip


@pytest.mark.parametrize(("place", "processes"), [(1, 1_000), (2, 200)])
def test_the_calculation_follows_from_the_constants(place: int, processes: int) -> None:
    shown = [float(row[place].replace(",", "")) for row in documents.table("at 1,000,000,000 items a day")]
    assert shown == pytest.approx(column(processes), rel=0.01, abs=0.051)


def test_the_constants_of_the_code_are_those_of_the_code() -> None:
    assert (GATHERED, BEATS, CONNECTED) == (FLUSH_SECONDS, 1 / BEAT_SECONDS, CONNECTIONS)
