"""Stocks: analyses each listed symbol, with one result per symbol and day."""

from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import fmean, stdev
from typing import Any

import dramatiq

import callboard
from callboard.actors.remote import call, is_passing

#: A migration of the app. A result is deleted with the item that wrote it. Prices have a table of their own, apart from
#: the listed columns.
TABLES = """
CREATE TABLE IF NOT EXISTS stock_results (
    symbol text, day date, score float8, verdict text, entry float8, target float8, job bigint, item integer,
    PRIMARY KEY (symbol, day), FOREIGN KEY (job, item) REFERENCES callboard.items ON DELETE CASCADE);
CREATE INDEX IF NOT EXISTS stock_results_by_item ON stock_results (job, item);
CREATE TABLE IF NOT EXISTS stock_prices (
    symbol text, day date, prices float8[],
    PRIMARY KEY (symbol, day), FOREIGN KEY (symbol, day) REFERENCES stock_results ON DELETE CASCADE);
CREATE TABLE IF NOT EXISTS watchlist (symbol text PRIMARY KEY, last_job bigint, last_state text);
"""
RESULT = """
INSERT INTO stock_results
VALUES (%(symbol)s, %(day)s, %(score)s, %(verdict)s, %(entry)s, %(target)s, %(job)s, %(item)s)
ON CONFLICT (symbol, day) DO UPDATE SET (score, verdict, entry, target, job, item)
    = (excluded.score, excluded.verdict, excluded.entry, excluded.target, excluded.job, excluded.item)
"""
PRICES = """
INSERT INTO stock_prices VALUES (%s, %s, %s) ON CONFLICT (symbol, day) DO UPDATE SET prices = excluded.prices
"""
WATCHED = """
UPDATE watchlist AS w SET (last_job, last_state) = (%s, s.state)
FROM unnest(%s::text[], %s::text[]) AS s (symbol, state) WHERE w.symbol = s.symbol AND coalesce(w.last_job, 0) <= %s
"""


@dramatiq.actor(queue_name="callboard", retry_when=is_passing, min_backoff=200)
def analyse_stock(symbol: str, capital: float, day: str) -> dict[str, Any]:
    """Score a symbol by its prices of one year; `day` is an ISO date."""
    prices = call(f"quotes/{symbol}")["prices"]
    callboard.step(f"{len(prices)} prices of {symbol}")
    score, entry = round((prices[-1] - fmean(prices)) / stdev(prices), 3), prices[-1]
    verdict = "buy" if score > 1 else "hold" if score > -1 else "sell"
    found = {"score": score, "verdict": verdict, "entry": entry, "target": round(entry * (1 + score / 20), 2)}
    here = callboard.current()
    callboard.save(RESULT, {**found, "symbol": symbol, "day": day, "job": here.job, "item": here.item})
    callboard.save(PRICES, (symbol, day, prices))
    return {"verdict": verdict, "shares": capital // entry}


@dramatiq.actor(queue_name="callboard", retry_when=is_passing)
def tell_watchlist(ended: dict[str, Any]) -> None:
    """Write the ended job, and the state of each symbol's item, into the watchlist."""
    job = ended["job"]
    items = [(item["kwargs"]["symbol"], item["state"]) for item in callboard.get(job).items()]
    callboard.save(WATCHED, (job, [symbol for symbol, _ in items], [state for _, state in items], job))


def submit(symbols: Sequence[str], capital: float, **options: Any) -> callboard.Job:
    """Submit a job that analyses each symbol once, as of today (UTC)."""
    day = datetime.now(UTC).date().isoformat()
    items = ({"symbol": symbol, "capital": capital, "day": day} for symbol in symbols)
    told = dict.fromkeys(("on_complete", "on_fail", "on_cancel"), tell_watchlist)
    return callboard.submit(analyse_stock, items, name="all stocks", item_key="symbol", **told | options)
