"""Which items one message carries."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.publish import chunking
from callboard.middleware.publish.chunking import into_chunks
from callboard.sql.rows import Outgoing

OUT = Outgoing(
    1, 0, 1, 0, suspect=False, actor="a", queue="q", message_id="1-0", args=b"x" * 40, options=None, sent_ms=None
)  # fmt: skip
ITEMS = st.builds(
    Outgoing, st.just(1), st.just(0), st.integers(1, 2), st.just(0), st.booleans(), st.just("a"), st.just("q"),
    st.just("1-0"), st.binary(min_size=1, max_size=3), st.sampled_from([None, None, None, b"{}"]), st.none(),
)  # fmt: skip


@given(st.lists(ITEMS, max_size=40), st.integers(1, 7))
def test_chunks_carry_every_item_once_in_order(items: list[Outgoing], chunk: int) -> None:
    items = [replace(out, item=n) for n, out in enumerate(items)]
    runs = [[replace(out, more=()), *out.more] for out in into_chunks(items, chunk)]
    assert [out for run in runs for out in run] == items
    assert all(len(run) <= chunk for run in runs)
    for run in runs:
        if len(run) > 1:
            assert all(out.attempt == 1 and out.options is None for out in run)
            assert len({out.suspect for out in run}) == 1


def test_a_chunk_carries_a_limited_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 100)
    small = [replace(OUT, item=n) for n in range(7)]
    assert [1 + len(run.more) for run in into_chunks(small, 50)] == [2, 2, 2, 1]
    assert len(into_chunks([replace(out, args=b"x" * 400) for out in small[:3]], 50)) == 3
