"""A job as terminal text."""

from typing import Any

import pytest
from rich.console import Console

from callboard.commands.jobs import job_text
from callboard.sql.states import ITEM_STATES


def job(**more: Any) -> dict[str, Any]:
    none = dict.fromkeys(("rate", "eta", "step", "reason", "stalled", "stopping"))
    counts = {"hung": [], **dict.fromkeys((*ITEM_STATES, "retries", "crashes", "unkept"), 0)}
    return {
        "id": 17,
        "name": "words",
        "state": "running",
        "progress": 0.5,
        "total": 4,
        "stages": [],
        "limits": {},
        **none,
        **counts,
        **more,
    }


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_has_a_line_of_its_own(terminal: bool) -> None:
    console = Console(width=80, force_terminal=terminal, color_system=None)
    with console.capture() as captured:
        console.print(job_text.lines(job(succeeded=2, queued=2)))
    headline, bar, counts, *_ = captured.get().splitlines()
    assert headline == "17 words running 50.0 % of 4"
    assert set(bar.strip()) <= set("━╸╺ ")
    assert counts == "2 queued · 2 succeeded"


def test_a_finished_job_has_no_step_and_one_retry_is_singular() -> None:
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(job_text.lines(job(step="counting", retries=1, crashes=2)))
        console.print(job_text.lines(job(step="counting", state="completed", reason="done")))
    told = captured.get().splitlines()
    assert told[3:5] == ["1 retry · 2 crashes", "step: counting"]
    assert told[-1] == "reason: done"
    assert told.count("step: counting") == 1


def test_limits_have_the_names_of_the_options() -> None:
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(job_text.lines(job(limits={"concurrency": 5, "rate": "10/s"})))
    assert captured.get().splitlines()[-1] == "limits: concurrency 5, rate 10/s"


def test_a_hung_item_is_named_with_its_line_of_code() -> None:
    console = Console(width=120, color_system=None)
    one = {"item": 3, "seconds": 93, "worker": 12, "place": "shop/prices.py:88 in fetch"}
    with console.capture() as captured:
        console.print(job_text.lines(job(hung=[one, {**one, "item": 4}])))
    assert captured.get().splitlines()[-2:] == [
        "hung: item 3 on worker 12, for 1 min 33 s, at shop/prices.py:88 in fetch",
        "hung: item 4 on worker 12, for 1 min 33 s, at shop/prices.py:88 in fetch",
    ]
