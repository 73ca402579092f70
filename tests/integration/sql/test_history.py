"""The jobs that the benchmarks make in SQL are such as the product makes."""

from pathlib import Path

import pytest

from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from tests.bench import actions, burden, history
from tests.bench.rig import Rig


def test_a_history_adds_up(conn: Conn) -> None:
    finished = history.add_finished(conn, 3, 20, workers=1)
    opened = history.add_open(conn, 2, 8)
    report = queries.run(conn, queries.verify())
    assert (report["jobs"], report["drift"]) == (5, [])
    assert queries.run(conn, queries.job_counts()) == {"open": 2, "stalled": 0, "ended": 3, "failed_today": 1}
    (items, _) = queries.run(conn, queries.items(finished[0], state="failed"))
    assert [item["item"] for item in items] == [0]
    (items, _) = queries.run(conn, queries.items(opened[0], state="pending"))
    assert [item["item"] for item in items] == [*range(4, 8)]


def test_the_measured_actions_change_their_jobs(conn: Conn, database_url: str) -> None:
    rows = actions.table(Rig(Path(), "", database_url), 20)
    assert len(rows) == 7
    (retried, again), _ = queries.run(conn, queries.jobs())
    assert [(job["state"], job["total"], job["failed"], job["cancelled"]) for job in (retried, again)] == [
        ("running", 20, 0, 0),
        ("pending", 20, 0, 0),
    ]


@pytest.mark.parametrize(("stored", "state"), [(burden.QUEUED, "pending"), (burden.RETRYING, "retrying")])
def test_a_burden_adds_up(conn: Conn, stored: str, state: str) -> None:
    burden.store(conn, stored, 20)
    assert queries.run(conn, queries.verify())["drift"] == []
    (job,), _ = queries.run(conn, queries.jobs())
    assert job[state] == 20
