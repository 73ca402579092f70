"""The five pipelines as an app tests its own: in the process of pytest, with the plug-in `callboard.testing`, without
RabbitMQ and without their remote services. A test of that plug-in runs this file.
"""

import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from callboard.actors import audit, pages, planning, stocks, theme_ads
from callboard.actors.remote import Refused
from callboard.sql.pool import Conn
from callboard.testing import CallboardWorker


@pytest.fixture
def conn(callboard_worker: CallboardWorker) -> Iterator[Conn]:
    """The database of the tests, with the tables of the app."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as made:
        for one in (audit, planning, stocks):
            made.execute(one.TABLES.encode())
        yield made


def states(items: list[dict[str, Any]]) -> list[str]:
    return [item["state"] for item in items]


def test_theme_ads(callboard_worker: CallboardWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [Refused(429, "too many requests", 0.01)]

    def call(path: str, *, ad_group_id: int) -> dict[str, Any]:
        if busy:
            raise busy.pop()
        if ad_group_id == 3:
            raise Refused(400, "policy violation", 0)
        return {"resource": f"{path}/{ad_group_id}", "note": "Already processed" if ad_group_id == 2 else None}

    monkeypatch.setattr(theme_ads, "call", call)
    done = callboard_worker.wait(theme_ads.submit([(7, 1), (7, 2), (7, 3)]))
    assert states(done.items) == ["succeeded", "skipped", "failed"]
    assert done.results[0] == {"new_ad_resource": "ads/7/1"}
    assert [error["message"] for error in done.errors] == ["400: policy violation"]
    assert done.status["retries"] == 0


def test_stocks(callboard_worker: CallboardWorker, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(path: str) -> dict[str, Any]:
        if path == "quotes/GONE":
            raise Refused(404, "GONE was delisted", 0)
        return {"prices": [10.0, 11.0, 12.0, 20.0]}

    monkeypatch.setattr(stocks, "call", call)
    done = callboard_worker.wait(stocks.submit(["ACME", "GONE"], 100.0))
    assert states(done.items) == ["succeeded", "failed"]
    assert done.results[0] == {"verdict": "buy", "shares": 5.0}
    saved = conn.execute("SELECT symbol, verdict, job, item FROM stock_results").fetchall()
    assert saved == [("ACME", "buy", done.job.id, 0)]


def test_audit(callboard_worker: CallboardWorker, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    async def acall(path: str, *, query: str) -> dict[str, str]:
        return {"answer": f"Try {'Acme' if path == 'ask/north' else 'somebody else'}."}

    monkeypatch.setattr(audit, "acall", acall)
    done = callboard_worker.wait(audit.submit("Acme"))
    assert [stage["succeeded"] for stage in done.status["stages"]] == [1, 135, 135, 1, 3]
    saved: dict[str, str] = dict(conn.execute("SELECT provider, insight FROM audits").fetchall())
    assert saved["north"] == "north knows Acme"
    assert saved["west"] == "west should hear of Acme"


def test_pages(callboard_worker: CallboardWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(path: str) -> str:
        if path == "sites/none.example":
            raise Refused(404, "no such site", 0)
        return "<title> home </title><a href=/>"

    monkeypatch.setattr(pages, "call", call)
    done = callboard_worker.wait(pages.submit("tenant-a", ["one.example", "none.example"]))
    assert states(done.items) == ["succeeded", "skipped"]
    assert done.results[0] == {"title": "home", "links": 1, "bytes": 31}
    assert done.status["tenant"] == "tenant-a"


def test_planning(callboard_worker: CallboardWorker, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(_path: str, *, name: str) -> dict[str, Any]:
        found = {"risk_level": "low", "regulatory_flag": False, "pii_flag": False}
        return found if name == "odd" else {"information_security_classification": "internal", **found}

    monkeypatch.setattr(planning, "call", call)
    done = callboard_worker.wait(planning.submit("one", ["order.status", "odd"]))
    assert states(done.items) == ["succeeded", "failed"]
    assert "information_security_classification" in done.errors[0]["message"]
    saved = conn.execute("SELECT element, revision, job FROM classifications").fetchall()
    assert saved == [("order.status", 1, done.job.id)]
