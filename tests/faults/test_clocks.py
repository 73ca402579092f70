"""The clocks of workers are an hour off, forwards and backwards: only the clock of the database counts. And that is set
back.
"""

from contextlib import suppress
from typing import Any

from psycopg.errors import DeadlockDetected, IdleInTransactionSessionTimeout, LockNotAvailable

from callboard.middleware.message.envelope import decode_args
from callboard.sql.pool import connect, transaction
from tests.faults.rig.scenario import ACTORS, TIMEOUT, Scenario, mixed
from tests.support.workers import wait_until

HOUR = 3600.0
#: By what the server undoes the change of all times.
UNDONE = DeadlockDetected, LockNotAvailable, IdleInTransactionSessionTimeout
#: Seconds from one attempt to the next, and from an item's end to its child's start.
DELAY = 2.0
MODULES = (ACTORS, "tests.faults.rig.shifted_clock")
LATE = 40
#: Seconds within which everything happens, and which are no hour.
SOON = HOUR / 2
#: Every column that holds a time. `sent_at` is what a message says of itself, and stays what its sender wrote;
#: the migrations are of the database that this one was copied from.
TIMES = (
    "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'callboard'"
    " AND data_type = 'timestamp with time zone' AND column_name <> 'sent_at' AND table_name <> 'migrations'"
    " AND is_generated = 'NEVER'"
)


def times(scenario: Scenario) -> dict[str, tuple[float, float]]:
    """For each of those columns with a row, its first and last time, in seconds before now."""
    found = {}
    for table, column in scenario.sql(TIMES):
        ((first, last),) = scenario.sql(
            f"SELECT extract(epoch FROM now() - min({column}))::float8,"
            f" extract(epoch FROM now() - max({column}))::float8 FROM callboard.{table}"
        )
        if first is not None:
            found[f"{table}.{column}"] = (first, last)
    return found


def delays(scenario: Scenario, job: int) -> tuple[list[float], list[float]]:
    """Seconds from each first attempt's end to the second's start, and from there on to the child's start."""
    rows = scenario.run_log.conn.execute(
        "SELECT item, attempt, extract(epoch FROM began)::float8, extract(epoch FROM ended)::float8 FROM runs"
        " WHERE job = %s",
        (job,),
    )
    began, ended = {}, {}
    for item, attempt, start, end in rows:
        began[item, attempt], ended[item, attempt] = start, end
    parents = {
        item: decode_args(args)[0][0]
        for item, args in scenario.sql("SELECT item, args FROM callboard.items WHERE job_id = %s", job)
    }
    children = [item for item in parents if item >= LATE]
    return (
        [began[item, 2] - ended[item, 1] for item in range(LATE)],
        [began[child, 1] - ended[parents[child], 2] for child in children],
    )


def test_a_clock_an_hour_off_changes_nothing(scenario: Scenario) -> None:
    """One worker is an hour ahead and the other an hour behind; every item waits for time to pass, twice."""
    for off in (HOUR, -HOUR):
        scenario.start_worker(env={"CALLBOARD_TEST_CLOCK": str(off)}, modules=MODULES, threads=4)
    seen: list[Any] = []

    def done(status: dict[str, Any]) -> bool:
        seen.append(
            scenario.sql(
                "SELECT (SELECT count(*) FROM callboard.workers WHERE died_at IS NULL AND stopped_at IS NULL)::int,"
                " (SELECT min(holder) FROM callboard.leases),"
                # Not by now(), which may be before what another has stored by the moment that is seen.
                " (SELECT coalesce(max(until), now()) FROM callboard.leases) <= clock_timestamp() + interval '11 s',"
                # Those that a worker gives back have no time.
                " (SELECT coalesce(max(due_at) FILTER (WHERE due_at < timestamptz '9999-01-01Z'), now())"
                "  FROM callboard.outbox) <= clock_timestamp() + interval '2 s'"
            )[0]
        )
        return status["finished_at"] is not None

    job = scenario.submit("late", ([n, DELAY] for n in range(LATE)))
    with scenario.watch(job) as watcher:
        scenario.wait_for(job, done)
        runs = scenario.assert_completed(job, total=2 * LATE, retries=LATE, watcher=watcher)
    assert runs == {n: 2 if n < LATE else 1 for n in range(2 * LATE)}
    again, after = delays(scenario, job.id)
    assert min(again + after) >= DELAY
    assert max(again + after) < SOON
    for column, (first, last) in times(scenario).items():
        assert first < SOON, column
        assert last > -SOON, column
    assert {(alive, lapses, due) for alive, _, lapses, due in seen} == {(2, True, True)}
    assert len({holder for _, holder, _, _ in seen if holder}) == 1
    assert "is dead" not in scenario.log()
    # The clocks really were off: so say the messages that these workers sent.
    sent = scenario.sql(
        "SELECT round(extract(epoch FROM sent_at - now()) / %s)::int FROM callboard.items"
        " WHERE job_id = %s AND sent_at IS NOT NULL",
        HOUR,
        job.id,
    )
    assert {hours for (hours,) in sent} == {1, -1}
    print(f"{len(seen)} looks; again after {max(again):.1f} s at the latest, a child after {max(after):.1f} s")


#: All that the database has stored is an hour later than it was: what one sees whose clock is set back by that.
LATER = "UPDATE callboard.{table} SET {column} = {column} + interval '1 h' WHERE {column} < timestamptz '9000-01-01Z'"


def test_the_clock_of_the_database_is_set_back(scenario: Scenario) -> None:
    """By an hour, while items wait to be published, for a rate, for their next attempts, and a callback for its end."""
    scenario.start_worker(threads=4)
    stopped = scenario.submit("leaves", [{"number": 0}])
    scenario.wait_for(stopped, lambda status: status["running"] == 1)
    told = scenario.submit("work", [{"number": 0}], on_complete="told")
    called = "SELECT count(*) FROM callboard.callbacks WHERE delivered_at IS NOT NULL"
    assert wait_until(lambda: scenario.sql(called) == [(1,)], TIMEOUT)
    jobs = {scenario.submit("work", mixed(200, 0.05)): 200, scenario.submit("work", mixed(60), rate="20/s"): 60}
    for job in jobs:
        scenario.wait_for(job, lambda status: status["succeeded"] > 5)
    while True:
        # It changes the tables in no order that others keep, and may stand still between two.
        with suppress(*UNDONE), connect(scenario.database_url) as conn, transaction(conn):
            conn.execute("SET LOCAL session_replication_role = replica")
            for table, column in conn.execute(TIMES).fetchall():
                conn.execute(LATER.format(table=table, column=column).encode())
            conn.execute("UPDATE callboard.callbacks SET delivered_at = NULL")
            break
    stopped.cancel()
    for job, total in jobs.items():
        scenario.assert_mixed_completed(job, total, timeout=SOON)
    scenario.wait_for(stopped, lambda status: status["finished_at"] is not None, SOON)
    assert wait_until(lambda: scenario.sql(called) == [(1,)], SOON)
    assert scenario.status(told)["state"] == "completed"
    ((late,),) = scenario.sql("SELECT count(*) FROM callboard.workers WHERE beat_at > clock_timestamp()")
    assert late == 0
    said = "the clock of the database was set back by"
    assert wait_until(lambda: said in scenario.log(), TIMEOUT)  # the worker's master passes it on
