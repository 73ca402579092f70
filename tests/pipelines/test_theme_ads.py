"""Theme ads: exact counts while they run, whatever is killed; customers are limited; jobs run side by side.

With CALLBOARD_TEST_LONG=1 there are 10,000.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from callboard.commands.local import remote_world
from callboard.commands.local.remote_world import AGAINST_POLICY, WITH_AD, WITHOUT_AD, Answer, World
from callboard.commands.services.ports import free_ports
from tests.pipelines.rig import TIMEOUT, Rig, Seen
from tests.support.programs import running
from tests.support.workers import wait_until

COUNTS = ("pending", "queued", "running", "retrying", "succeeded", "failed", "skipped", "cancelled")
CUSTOMERS, GROUPS = 20, 500 if os.environ.get("CALLBOARD_TEST_LONG") else 50
ADS = CUSTOMERS * GROUPS
REFUSED = CUSTOMERS * sum(group < GROUPS for group in AGAINST_POLICY)
SKIPPED = CUSTOMERS * sum(group < GROUPS for group in WITH_AD | WITHOUT_AD)
#: Ads at most that a worker has created when it is killed, and whose outcomes are not recorded: some, or those of a few
#: seconds in which the database stood still.
LOST = 200
#: How long a tenth of a job took, by the order in which its items ended.
TENTH = f"""
SELECT extract(epoch FROM max(finished_at) - min(finished_at))::float FROM (
    SELECT finished_at FROM callboard.items WHERE job_id = %s ORDER BY finished_at OFFSET %s LIMIT {ADS // 10}
) AS i
"""


def as_it_is_seen(seen: Seen) -> Callable[[World, str, Any], Answer]:
    """The service that creates ads. It answers a hundredth of all calls, and then none for two seconds or until the job
    was seen to have moved: a busy machine may let nobody look for a while.
    """
    create_ad, counting, answers_at = remote_world.SERVICES["ads"], threading.Lock(), Counter[int]()

    def may_answer() -> bool:
        with counting:
            answers_at[len(seen)] += 1
            return answers_at[len(seen)] <= ADS // 100

    def watched(world: World, path: str, sent: Any) -> Answer:
        made = create_ad(world, path, sent)
        wait_until(may_answer, 2)
        return made

    return watched


def test_thousands_of_ads_while_worker_and_web_app_are_killed(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Percentage after percentage is seen on the way, and the counts are right at the end."""
    rig.world.seconds = 0.08
    monkeypatch.setitem(remote_world.SERVICES, "ads", as_it_is_seen(seen := Seen()))
    (port,) = free_ports(1)
    serve, address = ("serve", "--port", str(port)), f"http://127.0.0.1:{port}/api/v1/jobs"
    token = rig.token()
    ad_groups = f"(c, g) for g in range({GROUPS}) for c in range(1, {CUSTOMERS + 1})"
    (job,) = rig.submit("theme_ads", f"theme_ads.submit(({ad_groups}), delay='1s')")
    with rig.watched(job, seen=seen):
        with running(tmp_path, *serve, env=rig.environment) as web:
            assert rig.reaches(job, 0.2)
            rig.restart_worker()
            assert rig.reaches(job, 0.5)
            web.kill()
        with running(tmp_path, *serve, env=rig.environment):
            answers: list[httpx.Response] = []

            def has_ended() -> bool:
                answers.append(httpx.get(f"{address}/{job.id}", headers=token))
                there = answers[-1].json()
                assert there["finished_at"] or 0.5 <= there["progress"] < 1
                return there["finished_at"] is not None

            assert wait_until(has_ended, TIMEOUT, pause=0.1)
        assert rig.reaches(job, 1)
    status = job.wait(TIMEOUT)
    # Ads that are in hand together end together, and the reader may miss the first ones.
    assert len({int(100 * now["progress"]) for (now,) in seen}) > 40
    assert all(sum(now[name] for name in COUNTS) == now["total"] for (now,) in seen if now["sealed"])
    # An ad that a killed worker had created exists already when its item runs again.
    assert (status["state"], status["total"], status["failed"]) == ("completed", ADS, REFUSED)
    assert SKIPPED <= status["skipped"] <= SKIPPED + LOST
    assert status["succeeded"] == ADS - REFUSED - status["skipped"]
    assert {item["error"]["message"] for item in job.items("skipped")} == {"Already processed", "No existing ad"}
    (policy,) = {group["message"].partition(":")[0] for group in job.errors() if group["failed"]}
    assert policy == "400"
    made = [item["result"]["new_ad_resource"] for item in job.items("succeeded")]
    assert len(set(made)) == status["succeeded"]
    assert (rig.world.most_customers, rig.world.most_of_one) == (5, 2)
    took = sorted(answer.elapsed.total_seconds() for answer in answers)
    began, ended = (datetime.fromisoformat(status[name]) for name in ("started_at", "finished_at"))
    minutes = 10_000 / ADS * (ended - began).total_seconds() / 60
    print(f"10,000 ads take {minutes:.1f} min (wanted: 15 min)")  # noqa: T201 — measured
    seconds = [rig.rows(TENTH, job.id, ADS // 10 * n)[0][0] for n in (6, 9)]
    print(f"the seventh tenth took {seconds[0]:.1f} s, the last {seconds[1]:.1f} s")  # noqa: T201 — measured
    print(f"the API answered meanwhile in {1000 * took[len(took) // 2]:.0f} ms")  # noqa: T201 — measured
    rig.assert_nothing_left()


def test_three_jobs_at_once_at_an_api_that_limits_rates(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three go on at once, with few connections; an answer of 429 is no error."""
    rig.world.seconds, rig.world.customer_rate = 0.005, 1  # of the two at once, one must wait
    create_ad, all_begun = remote_world.SERVICES["ads"], threading.Event()

    def held(world: World, path: str, sent: Any) -> Answer:
        """None of the jobs is done before each has an ad, however long the test takes."""
        if sent["ad_group_id"] >= 104:
            all_begun.wait(TIMEOUT)
        return create_ad(world, path, sent)

    monkeypatch.setitem(remote_world.SERVICES, "ads", held)
    jobs = rig.submit(
        "theme_ads",
        *(f"theme_ads.submit((c, g) for g in range(100, 106) for c in ({n}, {n + 1}))" for n in (100, 200, 300)),
    )
    assert wait_until(lambda: all(job.status()["succeeded"] for job in jobs), TIMEOUT)
    all_begun.set()
    connections = 0
    sessions = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    )

    def have_ended() -> bool:
        nonlocal connections
        ((now,),) = rig.rows(sessions)
        connections = max(connections, now)
        return all(job.status()["finished_at"] for job in jobs)

    assert wait_until(have_ended, TIMEOUT)
    for job in jobs:
        status = job.status()
        assert (status["state"], status["succeeded"]) == ("completed", 12), status
        assert "429: too many requests" not in {group["message"] for group in job.errors()}
        postponed = "SELECT FROM callboard.attempts WHERE job_id = %s AND kind = 'postponed'"
        assert rig.rows(postponed, job.id)
    assert connections < 16
    assert rig.rows("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
    rig.assert_nothing_left()
