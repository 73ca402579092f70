"""What the pages show of a job and ask about it, made without a database."""

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import nodes

from callboard.sql.states import ITEM_STATES
from callboard.web.pages import chart, words
from callboard.web.pages.job import PARTS, ROWS
from callboard.web.templating import JINJA
from tests.support.paths import ROOT

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


@pytest.mark.parametrize(("standing", "sealed"), [(False, False), (False, True), (True, False), (True, True)])
def test_only_a_standing_job_of_today_is_said_to_be_open(standing: bool, sealed: bool) -> None:
    ui: Any = JINJA.globals["ui"]
    job = JOB | {"actor": "mail", "standing": standing, "sealed": sealed, "eta": None}
    today = standing and not sealed
    sentence = (
        "Open: each message sent to <code>mail</code> outside a job becomes an item of this job, until midnight UTC"
    )
    assert (sentence in ui.sentence(job)) is today
    assert ("Running" in ui.sentence(job)) is not today
    assert (">open</span>" in ui.pill(job)) is today
    assert (">running</span>" in ui.pill(job)) is not today


@pytest.mark.parametrize(("page", "macros"), [("job.html", {"sentence", "acts"}), ("share.html", {"sentence"})])
def test_the_head_of_a_page_is_made_anew_when_its_sentence_or_its_buttons_may_differ(
    page: str, macros: set[str]
) -> None:
    sources = [(ROOT / "web" / "templates" / name).read_text("utf-8") for name in ("macros.html", page)]
    found = [macro for macro in JINJA.parse(sources[0]).find_all(nodes.Macro) if macro.name in macros]
    used = {
        name.attr
        for macro in found for branch in macro.find_all(nodes.If) for name in branch.test.find_all(nodes.Getattr)
        if isinstance(name.node, nodes.Name) and name.node.name == "job"
    }  # fmt: skip
    assert len(found) == len(macros)
    watched = re.search(r'id="head".* data-watch="(.*?)"', sources[1])
    assert watched
    # These never change, change with the state, or are filled in place.
    assert used - {"parent", "standing", "started_at", "eta"} <= set(watched[1].split())


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
    assert ("20 lanes with the most items in flight" in text) is more


def test_a_cancel_says_what_does_not_start_and_what_does_not_come() -> None:
    sealed, stages = JOB | {"sealed": True}, JOB | {"stages": [{"sealed": True}, {"sealed": False}]}
    none, two = ("None of its items waits to start.", "2 items that did not start will not run, unless you retry them.")
    assert words.consequence_of_cancel(sealed, 0) == none
    assert words.consequence_of_cancel(sealed, 2) == two
    assert words.consequence_of_cancel(JOB | {"standing": True}, 2) == two
    assert words.consequence_of_cancel(JOB, 0) == f"{none} It takes no more items."
    assert words.consequence_of_cancel(stages, 2) == f"{two} Further stages will not be made."


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        ({"error": {"type": "ValueError", "message": "bad"}}, "ValueError: bad"),
        ({"result": {"a": 1}}, '{"a": 1}'),
        ({"result_unkept": "300,000 bytes as JSON"}, "not kept: 300,000 bytes as JSON"),
        ({}, ""),
    ],
)
def test_an_item_shows_its_error_or_its_result_or_why_that_is_not_kept(item: dict[str, Any], shown: str) -> None:
    assert words.outcome(dict.fromkeys(("error", "result", "result_text", "result_unkept")) | item) == shown


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
