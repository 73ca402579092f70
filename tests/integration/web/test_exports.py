"""The items of a job as a file: whole, in order, and in any text that they may hold."""

import csv
import io
import json
from typing import Any

import pytest
from starlette.applications import Starlette

from callboard.commands.main import main
from callboard.sql.pool import Conn
from callboard.sql.reads import exports
from callboard.sql.rows import Failure
from callboard.sql.writes import submission
from tests.support.jobs import make_job, make_mixed_job, make_staged, publish, record
from tests.support.webapp import get

#: Arguments of items: long ones, and texts that JSON and CSV must escape.
TEXTS = ["plain", "a" * 10_000, 'a "quote", a comma', "two\nlines", "é ≤ 漢", "\0", "\ud800", "=1+1"]


def make_odd_job(conn: Conn) -> int:
    """A job whose items have each of TEXTS as argument and as result; and one that no JSON encoder wrote."""
    job = make_job(conn, 0, sealed=False)
    rows = [(json.dumps({"args": [text], "kwargs": {"n": 1}}).encode(), None) for text in TEXTS]
    submission.store_chunk(conn, job, 0, [*rows, (b"\x80pickled", None)], keyed=False)
    submission.seal_job(conn, job)
    publish(conn, job, len(rows) + 1)
    for item, text in enumerate(TEXTS):
        record(conn, job, {"succeeded": [item]}, result=json.dumps(text))
    return job


def lines(app: Starlette, path: str) -> list[dict[str, Any]]:
    (answer,) = get(app, path, lifespan=False)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in answer.content.split(b"\n") if line]


def test_items_are_exported_whole(
    conn: Conn, app: Starlette, database_url: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    monkeypatch.setattr(exports, "PAGE_ITEMS", 4)
    monkeypatch.setenv("DATABASE_URL", database_url)
    job = make_odd_job(conn)
    found = lines(app, f"/api/v1/jobs/{job}/export")
    assert [one["item"] for one in found] == list(range(len(TEXTS) + 1))
    assert [one["args"] for one in found] == [*([text] for text in TEXTS), None]
    assert found[-1]["args_text"] == "\ufffdpickled"
    assert [one["result"] for one in found] == [*TEXTS, None]

    (answer,) = get(app, f"/api/v1/jobs/{job}/export?format=csv", lifespan=False)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="job-{job}.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    assert [json.loads(row["args"]) for row in rows[:-1]] == [[text] for text in TEXTS]
    assert [json.loads(row["result"]) for row in rows[:-1]] == TEXTS
    assert {row["kwargs"] for row in rows[:-1]} == {'{"n":1}'}
    assert (rows[-1]["args"], rows[-1]["kwargs"], rows[-1]["result"]) == ("\ufffdpickled", "", "")

    # Texts that a spreadsheet would take for formulas; arguments and results are JSON, which none is.
    failure = Failure("failed", "=cmd", "@SUM(1)", "\t=x", "Traceback", 9)
    record(conn, job, {"failed": [len(TEXTS)]}, failure=failure)
    conn.execute("UPDATE callboard.items SET item_key = '+1 ' || item, args = '-2' WHERE item = %s", (len(TEXTS),))
    (answer,) = get(app, f"/api/v1/jobs/{job}/export?format=csv", lifespan=False)
    *_, row = csv.DictReader(io.StringIO(answer.content.decode(), newline=""))
    shown = [row[name] for name in ("key", "args", "error_type", "error_message", "error_place")]
    assert shown == [f"'+1 {len(TEXTS)}", "'-2", "'=cmd", "'@SUM(1)", "'\t=x"]

    (as_lines,) = get(app, f"/api/jobs/{job}/export", lifespan=False)
    for form, content in (("csv", answer.content), ("jsonl", as_lines.content)):
        assert main(["export", str(job), "--format", form]) == 0
        assert capfdbinary.readouterr().out == content


def test_a_result_larger_than_the_page_of_an_item_shows_is_exported_whole(conn: Conn, app: Starlette) -> None:
    job = make_job(conn, 1)
    record(conn, job, {"succeeded": [0]}, result=json.dumps("x" * 2_000_000))
    (found,) = lines(app, f"/api/jobs/{job}/export")
    assert found["result"] == "x" * 2_000_000


def test_an_export_has_the_items_that_are_asked_for(conn: Conn, app: Starlette) -> None:
    job = make_mixed_job(conn)
    failed = lines(app, f"/api/jobs/{job}/export?state=failed")
    assert [one["item"] for one in failed] == list(range(20, 25))
    assert failed[0]["error"]["type"] == "ValueError"
    (answer,) = get(app, f"/api/jobs/{job}/export?format=csv&error=ValueError", lifespan=False)
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert (rows[0]["item"], rows[0]["error_type"], rows[0]["state"]) == ("20", "ValueError", "failed")
    assert rows[0]["error_message"] == "not a number: <b>12,5</b>"
    parent, [first, second] = make_staged(conn)
    assert [one["job"] for one in lines(app, f"/api/jobs/{parent}/export")] == [first] * 10 + [second] * 8
    paths = [f"/api/jobs/{job}/export?{query}" for query in ("format=xml", "state=odd", "stage=1", "state=a&state=b")]
    assert [answer.status_code for answer in get(app, *paths, lifespan=False)] == [400] * 4
    assert [answer.status_code for answer in get(app, "/api/jobs/1/export", lifespan=False)] == [404]
    empty = make_job(conn, 0)
    (answer,) = get(app, f"/api/jobs/{empty}/export?format=csv", lifespan=False)
    assert answer.text.strip().split(",") == list(exports.COLUMNS)
