"""The plan of a soak can be replayed, and its verdict sees what is wrong."""

from collections import Counter
from collections.abc import Hashable
from typing import Any

import pytest

from tests.faults.soak.plan import ENDS_A_PROCESS, KINDS, plan
from tests.faults.soak.verdict import Account, Found, Sample, Verdict, account, growth

WANTED = Counter[Hashable]({("a", "work", 0): 1, ("a", "work", 1): 1, ("a", "child", 0): 2, "m": 1})


def found(what: Hashable, **more: Any) -> Found:
    return Found(**{"what": what, "state": "succeeded", "wanted": "succeeded", "runs": 1, "died": False, **more})


def everything() -> list[Found]:
    return [found(what) for what in WANTED.elements()]


def test_the_same_seed_gives_the_same_plan_and_another_gives_another() -> None:
    assert plan(7, 900) == plan(7, 900)
    assert plan(7, 900) != plan(8, 900)


def test_a_plan_holds_each_kind_once_before_any_comes_again() -> None:
    faults = plan(7, 900)
    assert len(faults) > 150
    for start in range(0, len(faults) - len(KINDS), len(KINDS)):
        assert {fault.kind for fault in faults[start : start + len(KINDS)]} == set(KINDS)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert faults[-1].at < 900


def test_the_second_worker_is_spared_from_the_middle_on() -> None:
    hit = [fault for fault in plan(7, 900) if fault.kind in ENDS_A_PROCESS]
    assert {fault.worker for fault in hit if fault.at < 450} == {0, 1}
    assert {fault.worker for fault in hit if fault.at > 450} == {0}


def test_what_is_all_there_is_well() -> None:
    assert account(WANTED, set(), everything()) == Account(items=5)


def test_a_lost_item_is_reported() -> None:
    made = account(WANTED, set(), everything()[1:])
    assert made.lost == [("a", "work", 0)]
    assert any(line.startswith("lost: 1") for line in verdict(made).problems())


def test_an_item_that_is_there_twice_is_reported() -> None:
    made = account(WANTED, set(), [*everything(), found("m"), found(("a", "child", 0))])
    assert made.doubled == ["m", ("a", "child", 0)]
    assert any(line.startswith("double counted: 2") for line in verdict(made).problems())


def test_what_nobody_answered_for_may_be_there_once() -> None:
    assert account(WANTED, {"n", "m"}, [*everything(), found("n")]).doubled == []
    assert account(WANTED, {"n", "m"}, [*everything(), found("n"), found("n"), found("m")]).doubled == ["m", "n"]


@pytest.mark.parametrize("more", [{"runs": 0}, {"state": "failed"}, {"state": "waiting"}])
def test_an_item_that_never_ran_or_ended_otherwise_is_reported(more: dict[str, Any]) -> None:
    assert len(account(WANTED, set(), [*everything()[:-1], found("m", **more)]).wrong) == 1


def test_three_deaths_may_end_an_item() -> None:
    made = account(WANTED, set(), [*everything()[:-1], found("m", runs=0, state="failed", died=True)])
    assert (made.wrong, made.died) == ([], 1)


@pytest.mark.parametrize(
    ("grows", "said"),
    [
        (lambda n: Sample(1, n, 40.0 + 2 * n, 20, 50), ["process 1: 49 to 89 MiB"]),
        (lambda n: Sample(1, n, 40.0, 20 + n // 5, 50), ["process 1: 21 to 25 threads"]),
        (lambda n: Sample(1, n, 40.0, 20, 50 + n), ["process 1: 59 to 79 files"]),
        (lambda n: Sample(1, n, 40.0 + n % 10, 20 + n % 2, 50 - n % 16), []),
    ],
)
def test_growth_is_seen_and_noise_is_not(grows: Any, said: list[str]) -> None:
    assert growth([grows(n) for n in range(30)]) == said


def verdict(made: Account, **more: Any) -> Verdict:
    nothing: dict[str, Any] = dict.fromkeys(("drift", "identity", "unfinished", "grown", "measured"), ())
    nothing["recovery"] = (1.5, "worker killed")
    return Verdict(seed=7, done=Counter({"worker killed": 3}), account=made, twice=2, **{**nothing, **more})


def test_a_clean_verdict_has_no_problem_and_says_what_was_done() -> None:
    made = verdict(Account(items=5))
    assert made.problems() == []
    assert {"worker killed            3", "lost                     0", "runs twice               2"} <= set(
        made.table()
    )


@pytest.mark.parametrize("name", ["drift", "identity", "unfinished", "grown"])
def test_each_other_trouble_is_a_problem(name: str) -> None:
    assert len(verdict(Account(), **{name: ["this"]}).problems()) == 1


def test_a_recovery_that_takes_too_long_is_a_problem() -> None:
    slow = verdict(Account(), recovery=(61.0, "queue purged"))
    assert slow.problems() == ["nothing went on for 60 s: 1, such as (61.0, 'queue purged')"]
