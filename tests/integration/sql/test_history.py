"""The jobs that the benchmarks make in SQL are such as the product makes."""

from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from tests.bench import history


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
