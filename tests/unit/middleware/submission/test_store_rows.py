"""A chunk is stored while the next one is read, and what goes wrong is raised in the order of the items."""

import threading
from collections.abc import Iterator

import pytest

from callboard.middleware.submission import submission
from callboard.middleware.submission.item_encoding import Row, encode_all

#: Seconds that a test waits for what has to come.
PATIENCE_SECONDS = 60


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "CHUNK_ITEMS", 4)
    monkeypatch.setattr(submission, "LARGE_CHUNK_ITEMS", 4)
    monkeypatch.setattr(submission, "PAUSE_ITEMS", 2)


def test_the_next_chunk_is_read_while_one_is_stored() -> None:
    read_on, stored = threading.Event(), list[tuple[int, int, bool]]()

    def source() -> Iterator[int]:
        for number in range(10):
            if number == 7:
                read_on.set()
            yield number

    def store(start: int, rows: list[Row]) -> None:
        waited = read_on.wait(PATIENCE_SECONDS)
        stored.append((start, len(rows), waited))

    submission.store_rows(encode_all(source()), 0, store, reads_on=True)
    assert stored == [(0, 4, True), (4, 4, True), (8, 2, True)]


def test_a_chunk_that_no_pool_takes_is_stored_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """When Python ends, pools take nothing any more, since 3.12 before its main thread counts as ended."""
    monkeypatch.setattr("concurrent.futures.thread._shutdown", True)
    stored = list[tuple[int, int, bool]]()

    def store(start: int, rows: list[Row]) -> None:
        stored.append((start, len(rows), threading.current_thread() is threading.main_thread()))

    submission.store_rows(encode_all(range(10)), 0, store, reads_on=True)
    assert stored == [(0, 4, True), (4, 4, True), (8, 2, True)]


def test_an_error_of_the_source_comes_when_the_chunk_before_is_stored() -> None:
    failed, stored = threading.Event(), list[int]()

    def source() -> Iterator[int]:
        yield from range(6)
        failed.set()
        raise OSError("the file ends here")

    def store(start: int, rows: list[Row]) -> None:
        assert failed.wait(PATIENCE_SECONDS)
        stored.append(start)

    with pytest.raises(OSError, match="the file ends here"):
        submission.store_rows(encode_all(source()), 0, store, reads_on=True)
    assert stored == [0]


@pytest.mark.parametrize("bad", [None, {1}])
def test_an_error_of_storing_comes_before_one_of_later_items(bad: object) -> None:
    """No later chunk is stored, not even one that is read already."""
    read_on, begun = threading.Event(), list[int]()

    def source() -> Iterator[object]:
        yield from range(7)
        read_on.set()
        yield bad
        yield from range(10)

    def store(start: int, rows: list[Row]) -> None:
        begun.append(start)
        assert read_on.wait(PATIENCE_SECONDS)
        raise ConnectionError("the database is gone")

    with pytest.raises(ConnectionError, match="the database is gone"):
        submission.store_rows(encode_all(source()), 0, store, reads_on=True)
    assert begun == [0]
