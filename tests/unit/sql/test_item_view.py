"""Pages of items, of those of several states."""

from typing import Any

import pytest

from callboard.sql.reads.item_view import of_states


def page(*numbers: int, following: int | None = None) -> tuple[list[dict[str, Any]], int | None]:
    return [{"item": number} for number in numbers], following


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([page(1, 4), page(2, 3)], page(1, 2, 3, 4)),
        ([page(1, 2, 3, following=3), page(9)], page(1, 2, 3, following=3)),
        ([page(1, 9), page(2, 5, 7, following=7)], page(1, 2, 5, 7, following=7)),
        ([page(following=100), page(8, 200)], page(8, following=100)),
        ([page(1, 2), page(2)], page(1, 2)),
        ([page(), page()], page()),
        ([page(1, 3, 5, 7, following=7), page(2, 4, 6, 8, following=8)], page(1, 2, 3, 4, following=4)),
    ],
)
def test_a_page_of_several_states_ends_where_the_first_of_theirs_does(
    pages: list[tuple[list[dict[str, Any]], int | None]], expected: tuple[list[dict[str, Any]], int | None]
) -> None:
    assert of_states(pages, 4) == expected
