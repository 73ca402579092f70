"""To which of the items that a dead worker held its death is charged, and which of them fail by it."""

import pytest

from callboard.middleware.journal.rescue import _charged
from callboard.sql.rows import Held


@pytest.mark.parametrize(
    ("held", "charged"),
    [
        pytest.param([(0, 30.0), (0, 0.5)], {0: False, 1: False}, id="none crashed before"),
        pytest.param([(1, 5.0), (0, 0.5)], {0: False}, id="one crashed before"),
        pytest.param([(2, 30.0), (1, 0.5), (0, 0.5)], {0: False, 1: False}, id="a new one crashed before, too"),
        pytest.param([(2, 30.0), (0, 0.5)], {0: False, 1: False}, id="a long one beside a new one"),
        pytest.param([(5, 30.0), (0, 0.5)], {0: True, 1: False}, id="likewise, for the sixth time"),
        pytest.param([(2, 30.0), (0, 12.0)], {0: True}, id="only long ones"),
        pytest.param([(4, 30.0)], {0: True}, id="a long one that is alone on record"),
        pytest.param([(2, 0.5)], {0: True}, id="one in its first seconds alone"),
        pytest.param([(2, 30.0), (0, 12.0), (2, 0.5)], {2: True}, id="one in its first seconds beside long ones"),
        pytest.param([(2, 9.5), (2, -0.6)], {1: True}, id="two ran alone, the second began last"),
        pytest.param([(2, 9.5), (2, 4.0)], {1: True}, id="likewise, the first was claimed late"),
        # Nothing begins within the first seconds of one that runs alone.
        pytest.param([(2, 9.5), (0, -0.6)], {0: False, 1: False}, id="a new one began after one that ran alone"),
        pytest.param([(2, 9.5), (1, -0.6)], {0: False, 1: False}, id="likewise, and it crashed before"),
        pytest.param([(2, 9.9), (0, 0.0), (1, 30.0)], {0: False, 1: False, 2: False}, id="likewise, and a long one"),
    ],
)
def test_a_death_is_charged_to_what_may_have_caused_it(held: list[tuple[int, float]], charged: dict[int, bool]) -> None:
    """Of each item: its crashes before, and the seconds for which it had run by the last heartbeat."""
    rows = [Held(1, item, 1, crashes, ran + 60.0, ran) for item, (crashes, ran) in enumerate(held)]
    assert {one.item: one.crashes + 1 >= limit for one, limit in _charged(rows).items()} == charged
