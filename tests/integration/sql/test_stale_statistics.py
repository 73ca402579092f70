"""What statements do while the planner's statistics are of another time, as after a submission they always are.

A state that no item was in, or a job that wasn't there, is guessed to be that of one row. Two sets of thousands are
then compared row by row with one another: when all had ended before, a flush of 4,000 outcomes took 20 s.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg.rows import tuple_row

from callboard.middleware.journal.rescue import rescue
from callboard.sql.pool import connection_options
from callboard.sql.reads import queries
from callboard.sql.rows import Event, Failure, NewItem, OutcomeState, Outgoing, PublishClaim, Retry, Running
from callboard.sql.states import ITEM_STATES
from callboard.sql.writes import (
    callbacks,
    claims,
    lanes,
    outcomes,
    publishing,
    retention,
    sends,
    stages,
    submission,
    sweep,
    workers,
)
from callboard.sql.writes.actions import cancel
from callboard.sql.writes.jobs import close_jobs, close_stopped, recount_jobs
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection, retry
from tests.support.databases import database, with_database
from tests.support.jobs import ARGS, BAD, NOT_NEEDED, claim_outbox, make_job, make_worker, record, run

#: Items of a job, all of which a statement has to do with at once.
MANY = 1_500
#: Rows that a block of a table may have, at least; and blocks that are sooner read whole than searched by an index.
BLOCK_ROWS, FEW_BLOCKS = 50, 9
#: Rows that it may hand on or compare; all with all would be MANY² / 2, a million.
MOST = 200 * MANY
#: The same, where a table of a few blocks is read whole for each of them.
MOST_OF_FEW = FEW_BLOCKS * BLOCK_ROWS * MANY
ANNA = Requester("python", "anna")
ROW_BY_ROW = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
PARAMETER = re.compile(r"%\((\w+)\)[sb]")
EXPLAIN = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE tried"


class LastCounted(Exception):
    """The last statement of an act is counted, and need not be run: only a statement after it would ask for that."""


class Watching(psycopg.Cursor[Any]):
    """Counts what each statement does, before it is run."""

    def execute(self, query: Any, params: Any = None, **given: Any) -> Any:
        """See the class. Raises LastCounted."""
        if isinstance(self.connection, Watched) and self.connection.watching:
            kept = given.get("prepare") is not False
            self.connection.did.append((self._work(query, params, kept=kept), str(query).strip()))
            if len(self.connection.did) == self.connection.last:
                raise LastCounted
        return super().execute(query, params, **given)

    def _work(self, query: str, params: Any, *, kept: bool) -> int:
        plain = psycopg.ClientCursor(self.connection, row_factory=tuple_row)
        text, values = numbered(query, params)
        given: Any = f"({', '.join(['%s'] * len(values))})" if values else ""
        try:
            with self.connection.transaction(force_rollback=True):
                if not kept:
                    plain.execute("SET LOCAL plan_cache_mode = force_custom_plan")
                plain.execute(f"PREPARE tried AS {text}")
                row = plain.execute(EXPLAIN + given, values).fetchone()
        except psycopg.errors.SyntaxError:  # a statement without a plan
            return 0
        finally:
            plain.execute("DEALLOCATE ALL")
        assert row is not None
        return rows_of(row[0][0]["Plan"], values)


def numbered(query: str, params: Any) -> tuple[str, list[Any]]:
    """A statement as PREPARE takes it, with $1, $2 …, and their values."""
    if isinstance(params, dict):
        names = list(dict.fromkeys(PARAMETER.findall(query)))
        text = PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", query)
        return text.replace("%%", "%"), [params[name] for name in names]
    places = count(1)
    return re.sub("%s", lambda _: f"${next(places)}", query).replace("%%", "%"), list(params or ())


def rows_of(node: dict[str, Any], values: Sequence[Any]) -> int:
    """Rows that a part of a plan gives, or looks at in vain; and elements of arrays that it compares with each. Of a
    table that is read whole again and again also the rows that a statement can't see: those that it adds itself.
    """
    looked = sum(count for name, count in node.items() if name == "Actual Rows" or name.startswith("Rows Removed by"))
    if node["Node Type"] == "Seq Scan" and node["Actual Loops"] > 1:
        blocks = (node["Shared Hit Blocks"] + node["Shared Read Blocks"]) / node["Actual Loops"]
        looked = max(looked, BLOCK_ROWS * blocks if blocks > FEW_BLOCKS else 0)
    arrays = [values[int(n) - 1] or () for n in re.findall(r"(?:ANY|ALL) \(\$(\d+)\)", node.get("Filter", ""))]
    ours: int = round(looked * node["Actual Loops"]) * (1 + sum(map(len, arrays)))
    return ours + sum(rows_of(part, values) for part in node.get("Plans", ()))


class Watched(psycopg.Connection[Any]):
    """A connection whose statements are planned for their parameters, as those of a new one are."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.cursor_factory = Watching
        self.watching = False
        self.did: list[tuple[int, str]] = []
        self.last: int | None = None

    @contextmanager
    def watched(self, last: int | None) -> Iterator[None]:
        """Count in this block, which ends with so many statements, or None if nobody knows how many there are."""
        self.did, self.last, self.watching = [], last, True
        try:
            yield
        except LastCounted:
            pass
        finally:
            self.watching = False


@dataclass(slots=True)
class Scene:
    """A connection, a worker, the names of all tables, and whether there were few rows when they were analysed."""

    conn: Watched
    worker: int
    tables: str
    few: bool

    def job(self, ends: OutcomeState | None = None, *, published: int = MANY, tries: int = 1) -> int:
        """A job of MANY items, all of which ended so."""
        job = make_job(self.conn, MANY, published=published)
        moves: dict[OutcomeState, range] = {} if ends is None else {ends: range(MANY)}
        for attempt in range(1, tries + 1):
            record(self.conn, job, moves, attempt=attempt, worker=self.worker, delay=0.0)
        return job

    def jobs(self, **columns: str) -> list[int]:
        """A third as many jobs of two items, which are queued; with these columns."""
        given = {
            "name": "'one of many'", "actor": "'work'", "queue": "'default'", "sealed": "true",
            **dict.fromkeys(("total", "consumed", "bulk_end", "watermark", "published"), "2"), **columns,
        }  # fmt: skip
        rows = self.conn.execute(  # nosec
            f"INSERT INTO callboard.jobs ({', '.join(given)}) SELECT {', '.join(given.values())} "
            f"FROM generate_series(1, {MANY // 3}) RETURNING id"
        ).fetchall()
        found = [row[0] for row in rows]
        self.conn.execute(
            "INSERT INTO callboard.items (job_id, item, args) SELECT j, n, %s FROM unnest(%s::bigint[]) AS j, "
            "generate_series(0, 1) AS n", (ARGS, found),
        )  # fmt: skip
        return found

    def busy(self) -> int:
        """A job of which a part has failed, one waits for its retry, and one is in hand."""
        job, part = self.job(), MANY // 3
        ends: dict[OutcomeState, range] = {"failed": range(part), "retrying": range(part, 2 * part)}
        record(self.conn, job, ends, worker=self.worker)
        run(self.conn, job, range(2 * part, MANY), worker=self.worker)
        return job

    def claim(self, job: int) -> PublishClaim:
        """A publisher's claim of it."""
        claim = publishing.claim_given_job(self.conn, job)
        assert claim is not None
        return claim

    def sent(self, job: int) -> list[Outgoing]:
        """What is in the outbox for it, claimed."""
        claimed = claim_outbox(self.conn, MANY)
        assert {message.job for message in claimed} == {job}
        return claimed

    def laned(self, *, published: int = 0) -> PublishClaim:
        """The claim of a job whose items have lanes of two, which nobody was told yet."""
        job = self.job(published=published)
        self.conn.execute("UPDATE callboard.jobs SET lane_by = '0', lane_width = 2 WHERE id = %s", (job,))
        return self.claim(job)

    def move_to_outbox(self, lane: Callable[[int], int]) -> PublishClaim:
        """The same, and all items are set aside, in these lanes."""
        claim = self.laned()
        lanes.move_to_outbox(self.conn, claim, 0, MANY, [(item, str(lane(item))) for item in range(MANY)])
        return claim


def _ended(scene: Scene) -> None:
    """All that ever was has ended."""
    for ends in ("succeeded", "failed", "skipped"):
        scene.job(ends)


def _waiting(scene: Scene) -> None:
    """All that is waits, and some is in hand."""
    for _ in range(3):
        run(scene.conn, scene.job(), range(50), worker=scene.worker)
    lanes.claim_lanes(scene.conn, scene.move_to_outbox(lambda item: item % 50), MANY)


def _failing(scene: Scene) -> None:
    """All that is has failed, and waits for its retry or has none."""
    scene.job("failed")
    scene.job("retrying", tries=2)
    scene.conn.execute("UPDATE callboard.outbox SET due_at = now() + interval '1 hour'")


def _few(scene: Scene) -> None:
    """Of most tables there is a row or two, which are read whole sooner than by an index."""
    job = make_job(scene.conn, 4)
    record(scene.conn, job, {"failed": range(1), "retrying": range(1, 3)}, worker=scene.worker)
    run(scene.conn, job, range(3, 4), worker=scene.worker)


BEFORE = {"ended": _ended, "waiting": _waiting, "failing": _failing, "few": _few}


# What is tried -------------------------------------------------------------------------------------------------------

Act = Callable[[], object]


def _recorded(ends: OutcomeState, failure: Failure | None = None, **given: Any) -> Callable[[Scene], Act]:
    def prepare(scene: Scene) -> Act:
        job, now = scene.job(), time.monotonic()
        again = Retry(5.0) if ends == "retrying" else None
        events = [Event(job, item, 1, ends, 0.01, now, scene.worker, failure, again, **given) for item in range(MANY)]
        return lambda: outcomes.record(scene.conn, events, now)

    return prepare


def _recorded_while_running(scene: Scene) -> Act:
    job, now = scene.job(), time.monotonic()
    run(scene.conn, job, range(MANY), worker=scene.worker)
    events = [Event(job, item, 1, "succeeded", 0.01, now, scene.worker, ran=True) for item in range(MANY)]
    return lambda: outcomes.record(scene.conn, events, now)


def _recorded_with_children(scene: Scene) -> Act:
    job, now = scene.job(), time.monotonic()
    events = [
        Event(job, item, 1, "succeeded", 0.01, now, scene.worker,
              children=tuple(NewItem(job, "work", "default", f"{item}-{n}", ARGS, None, 5) for n in range(2)))
        for item in range(MANY)
    ]  # fmt: skip
    return lambda: outcomes.record(scene.conn, events, now)


def _parked(scene: Scene) -> Act:
    job = scene.job()
    return lambda: claims.park(scene.conn, [(job, item, 1) for item in range(MANY)])


def _retries_parked(scene: Scene) -> Act:
    job = scene.job("retrying")
    return lambda: claims.park(scene.conn, [(job, item, 2) for item in range(MANY)])


def _running(scene: Scene) -> Act:
    job = scene.job()
    running = [Running(job, item, 1, 1.0, "a step") for item in range(MANY)]
    return lambda: outcomes.report_running(scene.conn, scene.worker, running)


def _stacks(scene: Scene) -> Act:
    job = scene.job()
    run(scene.conn, job, range(MANY), worker=scene.worker)
    hung = [Running(job, item, 1, 1.0, None, None, "a.py:1", "…") for item in range(MANY)]
    return lambda: outcomes.report_running(scene.conn, scene.worker, hung)


def _buried(scene: Scene) -> Act:
    worker = make_worker(scene.conn)
    run(scene.conn, scene.job(), range(MANY), worker=worker)
    scene.conn.execute("UPDATE callboard.workers SET beat_at = '2025-01-01' WHERE id = %s", (worker,))
    return lambda: rescue(scene.conn, worker)


def _outbox_claimed(scene: Scene) -> Act:
    job = scene.job("retrying")
    return lambda: scene.sent(job)


def _outbox_settled(scene: Scene) -> Act:
    sent = scene.sent(scene.job("retrying"))
    return lambda: publishing.confirm_outbox(scene.conn, sent)


def _outbox_released(scene: Scene) -> Act:
    unsent = scene.sent(scene.job("retrying"))
    return lambda: publishing.release_outbox(scene.conn, unsent, pause=1.0)


def _redo_claimed(scene: Scene) -> Act:
    job = scene.job()
    claims.park(scene.conn, [(job, item, 1) for item in range(MANY)])
    claim = scene.claim(job)
    return lambda: publishing.claim_in_turn(scene.conn, claim, MANY)


def _limited_claimed(scene: Scene) -> Act:
    job = scene.job(published=MANY - 1)
    sweep.republish(scene.conn, job, [(item, 1) for item in range(MANY - 1)])
    scene.conn.execute("UPDATE callboard.jobs SET concurrency = %s WHERE id = %s", (MANY, job))
    return lambda: scene.claim(job)


def _bulk(scene: Scene) -> Act:
    claim = scene.claim(scene.job(published=0))
    return lambda: publishing.bulk_items(scene.conn, claim, 0, MANY)


def _republished(scene: Scene) -> Act:
    job = scene.job()
    return lambda: sweep.republish(scene.conn, job, [(item, 1) for item in range(MANY)])


def _unheld(scene: Scene) -> Act:
    job = scene.job()
    run(scene.conn, job, range(MANY // 2), worker=scene.worker)
    return lambda: sweep.unheld_items(scene.conn, [(job, 0, MANY)], MANY)


def _set_aside(scene: Scene) -> Act:
    claim = scene.laned()
    return lambda: lanes.move_to_outbox(scene.conn, claim, 0, MANY, [(item, "a") for item in range(MANY)])


def _lanes_claimed(scene: Scene) -> Act:
    claim = scene.move_to_outbox(lambda item: item // 2)
    return lambda: lanes.claim_lanes(scene.conn, claim, MANY)


def _more_lanes_claimed(scene: Scene) -> Act:
    claim = scene.move_to_outbox(lambda item: item // 2)
    lanes.claim_lanes(scene.conn, claim, MANY // 2)
    return lambda: lanes.claim_lanes(scene.conn, claim, MANY)


def _of_many_jobs(ends: OutcomeState, failure: Failure | None = None) -> Callable[[Scene], Act]:
    def prepare(scene: Scene) -> Act:
        jobs, now = scene.jobs(), time.monotonic()
        events = [Event(job, 0, 1, ends, 0.01, now, scene.worker, failure) for job in jobs]
        return lambda: outcomes.record(scene.conn, events, now)

    return prepare


def _lanes_told(scene: Scene) -> Act:
    claim = scene.laned(published=MANY - 1)
    record(scene.conn, claim.job, {"retrying": range(MANY - 1)}, delay=0.0, worker=scene.worker)
    return lambda: lanes.set_lanes(
        scene.conn, claim, [(number, "b") for number, _ in lanes.messages_without_lane(scene.conn, claim, MANY)]
    )


def _lanes_changed(scene: Scene) -> Act:
    claim = scene.move_to_outbox(lambda item: item // 2)
    lanes.claim_lanes(scene.conn, claim, MANY)
    return lambda: lanes.change_lanes(
        scene.conn, claim, [(item, "c") for item, _ in lanes.items_in_flight(scene.conn, claim, -1)]
    )


def _added(scene: Scene) -> Act:
    job = make_job(scene.conn, 0, sealed=False)
    new = [NewItem(job, "work", "default", f"m-{n}", ARGS, None, 5, key=f"k-{n}") for n in range(MANY)]
    return lambda: sends.add_items(scene.conn, new, publishing=True)


def _sends_queued(scene: Scene) -> Act:
    job = make_job(scene.conn, 0, sealed=False)
    new = [NewItem(job, "work", "default", f"m-{n}", ARGS, None, 5) for n in range(MANY)]
    places = [place for place in sends.add_items(scene.conn, new, publishing=True) if place]
    made = Outgoing(
        job, 0, 1, 0, suspect=False, actor="work", queue="default", message_id="", args=b"", options=None, sent_ms=None
    )
    return lambda: sends.queue_sends(scene.conn, [replace(made, item=item, lease=lease) for item, lease in places])


def _sends_lapsed(scene: Scene) -> Act:
    _sends_queued(scene)
    scene.conn.execute("UPDATE callboard.send_leases SET ends_at = now()")
    [(job, leases)] = sends.lapsed_send_leases(scene.conn)
    return lambda: sends.queue_lapsed_sends(scene.conn, job, leases)


def _keyed(scene: Scene) -> int:
    job = make_job(scene.conn, 0, sealed=False)
    submission.store_chunk(scene.conn, job, 0, [(ARGS, str(n)) for n in range(MANY)], keyed=True)
    scene.conn.execute("DROP TABLE pg_temp.callboard_chunk")
    return job


def _stored_again(scene: Scene) -> Act:
    job = _keyed(scene)
    again = [(ARGS, str(n)) for n in range(MANY)]
    return lambda: submission.store_chunk(scene.conn, job, MANY, again, keyed=True)


def _keys_looked_up(scene: Scene) -> Act:
    job = _keyed(scene)
    scene.conn.execute("UPDATE callboard.jobs SET standing_on = now()::date - 2 WHERE id = %s", (job,))
    return lambda: sends.items_by_key(scene.conn, [("work", str(n), job, False) for n in range(MANY)])


def _recounted(scene: Scene) -> Act:
    job = scene.job("retrying", tries=2)
    return lambda: recount_jobs(scene.conn, [job])


def _woken(scene: Scene) -> Act:
    job = scene.job("retrying")
    scene.conn.execute("UPDATE callboard.outbox SET due_at = '9999-01-01Z', awaits = 'work' WHERE job_id = %s", (job,))
    workers.beat(scene.conn, scene.worker, [])
    return lambda: claims.make_postponed_due(scene.conn)


def _lanes_cleared(scene: Scene) -> Act:
    claim = scene.move_to_outbox(lambda item: item)
    lanes.claim_lanes(scene.conn, claim, MANY)
    record(scene.conn, claim.job, {"succeeded": range(MANY)}, worker=scene.worker)
    return lambda: sweep.drop_messages_of_ended_jobs(scene.conn)


def _retried(choice: RetrySelection, *, ends: OutcomeState, stopped: bool = False) -> Callable[[Scene], Act]:
    def prepare(scene: Scene) -> Act:
        job = make_job(scene.conn, MANY + 1)
        record(scene.conn, job, {ends: range(MANY)}, worker=scene.worker)
        if stopped:
            record(scene.conn, job, {"succeeded": [MANY]}, worker=scene.worker)
        return lambda: retry(scene.conn, job, ANNA, choice)

    return prepare


def _cancelled(scene: Scene) -> int:
    job = scene.job()
    record(scene.conn, job, {"retrying": range(MANY // 2)}, worker=scene.worker)
    cancel(scene.conn, job, ANNA)
    scene.conn.execute("UPDATE callboard.jobs SET control_at = '2025-01-01' WHERE id = %s", (job,))
    close_stopped(scene.conn)
    return job


def _reopened(choice: RetrySelection) -> Callable[[Scene], Act]:
    def prepare(scene: Scene) -> Act:
        job = _cancelled(scene)
        return lambda: retry(scene.conn, job, ANNA, choice)

    return prepare


def _dropped(scene: Scene) -> Act:
    _cancelled(scene)
    return lambda: sweep.drop_messages_of_ended_jobs(scene.conn)


#: Of a job that is over; and of one that calls somebody.
OVER = {"state": "'cancelled'", "finished_at": "now() - interval '1 min'"}
CALLS = {"callbacks": """'{"cancelled": [{"actor": "work", "queue": "default"}]}'"""}


def _many_done(scene: Scene) -> Act:
    scene.jobs(succeeded="2")
    return lambda: close_jobs(scene.conn)


def _many_stopped(scene: Scene) -> Act:
    scene.jobs(stopping="'cancelled'", control_at="'2025-01-01'", **CALLS)
    return lambda: close_stopped(scene.conn)


def _messages_of_many(scene: Scene) -> Act:
    jobs = scene.jobs(**OVER)
    scene.conn.execute(
        "INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first) "
        "SELECT j, n, 1, now(), false FROM unnest(%s::bigint[]) AS j, generate_series(0, 1) AS n", (jobs,),
    )  # fmt: skip
    return lambda: sweep.drop_messages_of_ended_jobs(scene.conn)


def _many_called(scene: Scene) -> Act:
    _many_stopped(scene)()
    return lambda: callbacks.claim_callbacks(scene.conn, webhooks=False, limit=MANY)


def _staged(scene: Scene) -> None:
    """As many jobs of three stages, all over."""
    parents = scene.jobs(
        **OVER, **dict.fromkeys(("total", "consumed", "bulk_end", "watermark", "published"), "0"), stages="3"
    )
    scene.conn.execute("DELETE FROM callboard.items WHERE job_id = ANY (%s)", (parents,))
    scene.conn.execute(
        "INSERT INTO callboard.jobs (name, parent_id, stage, on_failure, state, finished_at) "
        "SELECT 'a stage', j, n, 'stop', 'cancelled', now() FROM unnest(%s::bigint[]) AS j, generate_series(0, 2) AS n",
        (parents,),
    )


def _many_leave(scene: Scene) -> Act:
    _staged(scene)
    return lambda: retention.mark_expired(scene.conn, 1.0)


def _workers_forgotten(scene: Scene) -> Act:
    scene.conn.execute(
        "INSERT INTO callboard.workers (pid, threads, host, actors, queues, stopped_at) "
        "SELECT 1, 1, '', '{}', '{}', '2025-01-01' FROM generate_series(1, %s)", (MANY,),
    )  # fmt: skip
    run(scene.conn, scene.job(), range(MANY), worker=scene.worker)
    return lambda: retention.delete_old_rows(scene.conn, 1.0)


def _leaves(scene: Scene) -> Act:
    job = scene.job("failed")
    retention.mark_deleted(scene.conn, [job])
    return lambda: list(retention.delete_rows(scene.conn, job))


def _verified(scene: Scene) -> Act:
    job = scene.job("retrying", tries=2)
    return lambda: queries.run(scene.conn, queries.verify(job))


def _listed(state: str | None) -> Callable[[Scene], Act]:
    def prepare(scene: Scene) -> Act:
        job = scene.busy()
        # Or it is not looked for those.
        record(scene.conn, job, {"succeeded": [MANY - 1]})
        few = "cancelled = 1, skipped = 1, total = total + 2"
        scene.conn.execute(f"UPDATE callboard.jobs SET {few} WHERE id = %s", (job,))  # nosec
        return lambda: queries.run(scene.conn, queries.items(job, state=state, limit=MANY))

    return prepare


def _described(scene: Scene) -> Act:
    job = scene.busy()
    scene.conn.execute("UPDATE callboard.jobs SET updated_at = '2025-01-01' WHERE id = %s", (job,))
    return lambda: queries.run(scene.conn, queries.job(job))


def _results(scene: Scene) -> Act:
    job = scene.job("succeeded")
    return lambda: stages.results_page(scene.conn, job, ["succeeded"], -1, MANY)


TRIED: dict[str, Callable[[Scene], Act]] = {
    "succeed": _recorded("succeeded", result='{"x": 1}'),
    "fail": _recorded("failed", BAD),
    "are skipped": _recorded("skipped", NOT_NEEDED),
    "fail for now": _recorded("retrying", BAD),
    "end that ran for long": _recorded_while_running,
    "succeed in many jobs": _of_many_jobs("succeeded"),
    "fail in many jobs": _of_many_jobs("failed", BAD),
    "send children": _recorded_with_children,
    "park": _parked,
    "park retries": _retries_parked,
    "report": _running,
    "report stacks": _stacks,
    "bury": _buried,
    "claim outbox": _outbox_claimed,
    "settle outbox": _outbox_settled,
    "release outbox": _outbox_released,
    "claim in_turn": _redo_claimed,
    "claim a limited job": _limited_claimed,
    "read bulk items": _bulk,
    "republish": _republished,
    "look for lost": _unheld,
    "set aside": _set_aside,
    "claim lanes": _lanes_claimed,
    "claim more lanes": _more_lanes_claimed,
    "tell lanes": _lanes_told,
    "change lanes": _lanes_changed,
    "clear lanes": _lanes_cleared,
    "wake postponed": _woken,
    "add items": _added,
    "queue sends": _sends_queued,
    "queue lapsed sends": _sends_lapsed,
    "look up keys": _keys_looked_up,
    "store keys again": _stored_again,
    "retry failed": _retried(RetrySelection(), ends="failed"),
    "retry failed by type": _retried(RetrySelection(error="ValueError"), ends="failed"),
    "retry by number": _retried(RetrySelection(items=range(MANY)), ends="failed"),
    "retry skipped": _retried(RetrySelection(["skipped"]), ends="skipped"),
    "retry failed of a finished job": _retried(RetrySelection(), ends="failed", stopped=True),
    "go on": _reopened(RetrySelection(["cancelled"])),
    "go on with half": _reopened(RetrySelection(items=range(0, MANY, 2))),
    "drop messages": _dropped,
    "leave": _leaves,
    "close done": _many_done,
    "close stopped": _many_stopped,
    "drop messages of many": _messages_of_many,
    "claim callbacks": _many_called,
    "many leave": _many_leave,
    "forget workers": _workers_forgotten,
    "verify": _verified,
    "recount": _recounted,
    "describe": _described,
    "results": _results,
    "list": _listed(None),
    **{f"list {state}": _listed(state) for state in ITEM_STATES},
}


#: For two sets that it takes for a row each, the planner tosses a coin: both ways of it are tried, and the plan that it
#: keeps for any parameters, of which it guesses that each array has ten elements.
AS_IT_COMES = "as it comes"
JOINS = {
    AS_IT_COMES: "SET LOCAL enable_hashjoin = on",
    "row by row": ROW_BY_ROW,
    "for any": ROW_BY_ROW + "; SET LOCAL plan_cache_mode = force_generic_plan",
}


@pytest.fixture(scope="module", params=BEFORE)
def scene(request: pytest.FixtureRequest, postgres_url: str, template: str) -> Iterator[Scene]:
    """What the planner was told of, and nothing since."""
    with database(postgres_url, template) as name:
        url = with_database(postgres_url, name)
        with Watched.connect(url, **{**connection_options(), "prepare_threshold": None}) as conn:
            tables = conn.execute("SELECT 'callboard.' || tablename FROM pg_tables WHERE schemaname = 'callboard'")
            scene = Scene(conn, make_worker(conn), ", ".join(row[0] for row in tables), few=request.param == "few")
            for table in scene.tables.split(", "):
                conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            BEFORE[request.param](scene)
            conn.execute(f"VACUUM (ANALYZE) {scene.tables}")
            yield scene


@pytest.mark.parametrize("name", TRIED)
def test_no_statement_compares_all_with_all(name: str, scene: Scene) -> None:
    """Each way to join starts from the same rows: they are prepared once, and what a way did is rolled back."""
    # What others added and rolled back has made the tables large.
    scene.conn.execute(f"VACUUM {scene.tables}")
    with scene.conn.transaction(force_rollback=True):
        act, last = TRIED[name](scene), None
        # Of a row or two there is nothing to toss for: the planner takes what it would in any case.
        for joins in [AS_IT_COMES] if scene.few else JOINS:
            with scene.conn.transaction(force_rollback=True):
                scene.conn.execute(JOINS[joins] + "; SET LOCAL statement_timeout = '300s'")
                with scene.conn.watched(last):
                    act()
            assert scene.conn.did
            last = len(scene.conn.did)
            worst, statement = max(scene.conn.did)
            assert MANY / 6 < worst < (MOST_OF_FEW if scene.few else MOST), (joins, statement[:60])
