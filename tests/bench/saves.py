"""How fast workers empty a full queue when each item saves a row of the app's own ÷ when none does, in pairs."""

from statistics import median

import psycopg

from tests.bench.drain import tracked
from tests.bench.rig import Rig

#: As an app makes it: see docs/saving-results.md.
SCORES = """
CREATE TABLE IF NOT EXISTS scores (
    job_id bigint, item int, score text, PRIMARY KEY (job_id, item),
    FOREIGN KEY (job_id, item) REFERENCES callboard.items ON DELETE CASCADE
)
"""


def table(rig: Rig, items: int, pairs: int) -> list[str]:
    """Rows of a Markdown table."""
    with psycopg.connect(rig.database_url) as conn:
        conn.execute(SCORES)
    rows = ["| processes | saves nothing /s | saves a row /s | ratios | median |", "|---|---|---|---|---|"]
    for processes in (1, 2):
        measured = [
            (tracked(rig, processes, items, chunk=1), tracked(rig, processes, items, "saving", 1)) for _ in range(pairs)
        ]
        ratios = [after / before for before, after in measured]
        before, after = (median(values) for values in zip(*measured, strict=True))
        listed = " ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append(f"| {processes} | {before:,.0f} | {after:,.0f} | {listed} | {median(ratios):.2f} |")
    return rows
