"""What the pages show of a job and ask about it, made without a database."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from callboard.sql.states import ITEM_STATES
from callboard.web.pages import chart, words
from callboard.web.pages.job import PARTS, ROWS
from callboard.web.templating import JINJA

JOB: dict[str, Any] = {
    "id": 7, "parent": None, "state": "running", "stopping": None, "stalled": None, "sealed": False, "standing": False,
    "open": False, "stages": [], "limits": {}, "rate": None, **dict.fromkeys(ITEM_STATES, 0),
}  # fmt: skip


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("state", ["running", "paused"])
def test_only_a_job_that_is_open_for_more_items_has_a_button_to_seal_it(state: str, is_open: bool) -> None:
    ui: Any = JINJA.globals["ui"]
    job = JOB | {"state": state, "open": is_open}
    acts = ui.acts(job, "/", may_control=True, may_submit=True, may_share=False)
    assert ('action="/jobs/7/seal"' in acts) is is_open
    assert 'action="/jobs/7/cancel"' in acts


@pytest.mark.parametrize("more", [False, True])
def test_lanes_are_the_first_ones_only_where_there_are_more(more: bool) -> None:
    async def read(_query: object) -> list[dict[str, Any]]:
        return [{"lane": f"{n}", "in_flight": 1, "width": 1, "waiting": n} for n in range(ROWS + more)]

    async def lanes() -> Any:
        call: Any = SimpleNamespace(read=read)
        return await PARTS["lanes"](call, JOB | {"limits": {"concurrency_by": "n=1"}})

    page = JINJA.get_template("job.html")
    text = "".join(page.blocks["lanes"](page.new_context({"lanes": asyncio.run(lanes())})))
    assert text.count('class="mono"') == ROWS
    assert ("the first 20, those with most in flight" in text) is more


def test_a_cancel_says_what_does_not_start_and_what_does_not_come() -> None:
    sealed, stages = JOB | {"sealed": True}, JOB | {"stages": [{"sealed": True}, {"sealed": False}]}
    none, two = (
        "No item of it waits to start.",
        "2 items that did not start will not, unless they are run again by hand.",
    )
    assert words.consequence_of_cancel(sealed, 0) == none
    assert words.consequence_of_cancel(sealed, 2) == two
    assert words.consequence_of_cancel(JOB | {"standing": True}, 2) == two
    assert words.consequence_of_cancel(JOB, 0) == f"{none} It takes no more items."
    assert words.consequence_of_cancel(stages, 2) == f"{two} Stages that are not made yet will not be."


def test_a_job_that_does_not_move_has_no_pace() -> None:
    moved = JOB | {"succeeded": 1}
    assert words.pace(moved | {"rate": 0.5}) == "0.5/s"
    assert words.pace(moved | {"rate": 0.0}) == ""
    assert words.pace(moved | {"rate": None}) == ""


def test_a_run_in_which_no_item_has_ended_has_no_columns() -> None:
    points = [{"at": f"2026-11-22T12:00:{second:02}Z", "ended": 0, "failed": 0} for second in (0, 10, 20, 30)]
    assert chart.columns(points) == []
    ended = chart.columns([*points[:-1], points[-1] | {"ended": 1}])
    assert len(ended) == chart.COLUMNS
    assert ended[-1]["height"] == 100
