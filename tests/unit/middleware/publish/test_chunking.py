"""Which items one message carries."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.publish import chunking
from callboard.middleware.publish.chunking import CHUNK_SECONDS, MAX_CHUNK_ITEMS, chunk_size, into_chunks
from callboard.sql.rows import Outgoing, PublishClaim

OUT = Outgoing(
    1, 0, 1, 0, suspect=False, actor="a", queue="q", message_id="1-0", args=b"x" * 40, options=None, sent_ms=None
)
ITEMS = st.builds(
    Outgoing, st.just(1), st.just(0), st.integers(1, 2), st.just(0), st.booleans(), st.just("a"), st.just("q"),
    st.just("1-0"), st.binary(min_size=1, max_size=3), st.sampled_from([None, None, None, b"{}"]), st.none(),
)  # fmt: skip


@given(st.lists(ITEMS, max_size=40), st.integers(1, 7))
def test_chunks_carry_every_item_once_in_order(items: list[Outgoing], chunk: int) -> None:
    items = [replace(out, item=n) for n, out in enumerate(items)]
    runs = [[replace(out, more=()), *out.more] for out in into_chunks(items, lambda _: chunk)]
    assert [out for run in runs for out in run] == items
    assert all(len(run) <= chunk for run in runs)
    for run in runs:
        if len(run) > 1:
            assert all(out.attempt == 1 and out.options is None for out in run)
            assert len({out.suspect for out in run}) == 1


def test_a_chunk_carries_a_limited_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 100)
    small = [replace(OUT, item=n) for n in range(7)]
    assert [1 + len(run.more) for run in into_chunks(small, lambda _: 50)] == [2, 2, 2, 1]
    assert len(into_chunks([replace(out, args=b"x" * 400) for out in small[:3]], lambda _: 50)) == 3


def sizes(total: int, mean: float | None, threads: int, chunk: int | None = None) -> list[int]:
    """How many items each message of a job carries."""
    claim = PublishClaim(1, 1, 0, 0, total, 0, actor="a", queue="q", chunk=chunk, mean_seconds=mean, threads=threads)
    items = [replace(OUT, item=n) for n in range(total)]
    found = into_chunks(items, lambda item: chunk_size(claim, total - item))
    return [1 + len(out.more) for out in found]


@given(st.integers(1, 500), st.none() | st.floats(0, 100), st.integers(0, 64), st.none() | st.integers(1, 1000))
def test_a_message_carries_one_item_or_more(left: int, mean: float | None, threads: int, chunk: int | None) -> None:
    found = sizes(left, mean, threads, chunk)
    assert sum(found) == left
    assert min(found) >= 1
    if chunk is not None:
        assert set(found[:-1]) <= {chunk}
    elif mean is None or not threads:
        assert set(found) == {1}
    else:
        assert all(size <= max(1, CHUNK_SECONDS / mean) for size in found if mean)
        assert max(found) <= MAX_CHUNK_ITEMS


@given(st.integers(1, 2000), st.floats(0, 0.1), st.integers(1, 64))
def test_no_thread_idles_for_a_message_that_carries_many(total: int, mean: float, threads: int) -> None:
    found = sizes(total, mean, threads)
    assert len(found) >= min(total, threads)
    assert found[-min(threads, len(found)) :] == [1] * min(threads, len(found))
    for place, size in enumerate(found):
        assert size == 1 or size * 2 * threads <= sum(found[place:])


@pytest.mark.parametrize(
    ("total", "mean", "threads", "messages"),
    [
        (16, 0.0001, 16, 16),  # each thread has one
        (10_000, None, 16, 10_000),  # nobody has seen the actor
        (64, 1.0, 16, 64),
        (10_000, 0.05, 16, 10_000),
        (10_000, 0.0029, 16, 1089),
        (10_000, 0.0, 16, 263),
        (10_000, 0.0, 0, 10_000),  # no worker lives
        (10_000, 0.0, 8_000, 10_000),
    ],
)
def test_how_many_messages_a_job_has(total: int, mean: float | None, threads: int, messages: int) -> None:
    assert len(sizes(total, mean, threads)) == messages
