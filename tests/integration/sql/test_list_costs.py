"""What lists read of a large database, by a plan for any parameters and by one for those that are given."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.reads.job_filter import JobFilter, parse_search
from callboard.sql.reads.queries import Query
from tests.support.databases import database, with_database

#: Jobs that are over, open jobs that do not move, items of the one large job, items that wait for a retry.
JOBS, QUIET, ITEMS, RETRIES = 30_000, 400, 120_000, 50_000
#: Workers, and items that they have in hand.
WORKERS, IN_HAND = 1_000, 4_000
BLOCKS = (
    "SELECT sum(pg_stat_get_xact_blocks_fetched(oid))::bigint FROM pg_class"
    " WHERE relnamespace = 'callboard'::regnamespace"
)
FILL = """
    INSERT INTO callboard.workers (pid, threads, host, actors, queues, beat_at)
    SELECT n, 8, 'h', ARRAY['work', 'mail ' || n % 10], ARRAY['default'], now() + interval '1 hour'
    FROM generate_series(1, {WORKERS}) n;
    INSERT INTO callboard.jobs
        (name, actor, queue, tenant, metadata, sealed, state, created_at, started_at, finished_at)
    SELECT 'job ' || n, 'work', 'default', n % 20, jsonb_build_object('customer', n % 20), true, 'completed',
           now() - make_interval(secs => 40000 - n), now(), now() - interval '1 hour'
    FROM generate_series(1, {JOBS}) n;
    INSERT INTO callboard.totals (jobs, succeeded, failed, skipped, retries, crashes, state, actor, queue)
    VALUES ({JOBS}, 0, 0, 0, 0, 0, 'completed', 'work', 'default');
    UPDATE callboard.jobs SET name = 'job 1700 of the night', metadata = '{{"rare": "yes"}}' WHERE name = 'job 1700';
    INSERT INTO callboard.jobs (name, actor, queue, sealed, total, consumed, bulk_end, watermark, published, succeeded,
                                state, started_at, updated_at)
    VALUES ('large', 'work', 'default', true, {ITEMS}, {ITEMS}, {ITEMS}, {ITEMS}, {ITEMS}, {ITEMS} - 1,
            'running', now(), now());
    INSERT INTO callboard.items (job_id, item, args, state, started_at, finished_at, worker)
    SELECT j.id, n, '{{}}', CASE WHEN n < {ITEMS} - 1 THEN 'succeeded' ELSE 'waiting' END::callboard.item_state, now(),
           CASE WHEN n < {ITEMS} - 1 THEN now() END, 1
    FROM callboard.jobs AS j, generate_series(0, {ITEMS} - 1) n WHERE j.name = 'large';
    INSERT INTO callboard.jobs (name, actor, queue, sealed, total, consumed, bulk_end, watermark, published, retrying,
                                state, started_at, updated_at)
    VALUES ('retries', 'work', 'default', true, {RETRIES}, {RETRIES}, {RETRIES}, {RETRIES}, {RETRIES}, {RETRIES},
            'running', now(), now() - interval '1 minute'),
           ('small', 'work', 'default', true, 1, 1, 1, 1, 1, 1, 'running', now(), now() - interval '1 minute');
    INSERT INTO callboard.items (job_id, item, args, state, attempt)
    SELECT j.id, n, '{{}}', 'retrying', 2
    FROM callboard.jobs AS j, generate_series(0, {RETRIES} - 1) n
    WHERE j.name = 'retries' OR j.name = 'small' AND n = 0;
    INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, first, suspect)
    SELECT i.job_id, i.item, 2, 'default',
           now() + CASE WHEN j.name = 'small' THEN interval '5 h' ELSE interval '1 h' END, false, true
    FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id WHERE j.name IN ('retries', 'small');
    UPDATE callboard.jobs SET lane_by = '0', lane_width = 2 WHERE name = 'retries';
    UPDATE callboard.outbox AS o SET lane = (item % 40)::text FROM callboard.jobs AS j WHERE j.id = o.job_id
      AND j.lane_by IS NOT NULL;
    INSERT INTO callboard.jobs (name, actor, queue, sealed, total, consumed, bulk_end, watermark, published, failed,
                                state, started_at)
    VALUES ('failing', 'work', 'default', true, {RETRIES}, {RETRIES}, {RETRIES}, {RETRIES}, {RETRIES}, {RETRIES},
            'running', now());
    INSERT INTO callboard.items (job_id, item, args, state, finished_at, item_key)
    SELECT j.id, n, '{{}}', 'failed', now(), 'key ' || n
    FROM callboard.jobs AS j, generate_series(0, {RETRIES} - 1) n WHERE j.name = 'failing';
    INSERT INTO callboard.attempts
        (job_id, item, attempt, kind, retried, ended_at, error_type, pattern, message, traceback)
    SELECT i.job_id, i.item, 1, 'failed', false, now(), CASE item WHEN {RETRIES} - 5 THEN 'Rare' ELSE 'Common' END,
           'no', 'no', repeat('a line of a file', 60)
    FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id WHERE j.name = 'failing';
    INSERT INTO callboard.errors
        (job_id, count, failed, first_at, last_at, item, kind, error_type, place, pattern, message)
    SELECT job_id, count(*), count(*), now(), now(), min(item), 'failed', error_type, '', 'no', 'no'
    FROM callboard.attempts GROUP BY job_id, error_type;
    INSERT INTO callboard.jobs (name, actor, queue, sealed, total, consumed, bulk_end, watermark, published, state,
                                started_at, updated_at)
    SELECT 'quiet', 'work', 'default', true, 10, 10, 10, 10, 10, 'running', now(), now() - interval '1 minute'
    FROM generate_series(1, {QUIET}) n;
    UPDATE callboard.jobs SET started_at = now() - interval '10 d' WHERE name = 'large';
    INSERT INTO callboard.samples (job_id, taken_at, final, failed)
    SELECT j.id, now() - make_interval(secs => 4 * n), {ITEMS} - n, 0
    FROM callboard.jobs AS j, generate_series(1, {ITEMS}) n WHERE j.name = 'large';
    INSERT INTO callboard.running (job_id, started_at, item, attempt, worker)
    SELECT j.id, now(), n, 1, (SELECT min(id) FROM callboard.workers) + n % {WORKERS}
    FROM generate_series(1, {IN_HAND}) n JOIN callboard.jobs AS j ON j.name = 'job ' || n / 5 + 1;
"""


@dataclass(frozen=True)
class Large:
    """A database with much of everything."""

    conn: Conn

    def job(self, name: str) -> int:
        (found,) = self.conn.execute("SELECT id FROM callboard.jobs WHERE name = %s", (name,)).fetchall()
        return int(found[0])

    def read(self, query: Query[Any], plan: str) -> tuple[Any, int]:
        """The answer, and how many blocks were read for it."""
        with self.conn.transaction():
            self.conn.execute(f"SET LOCAL plan_cache_mode = force_{plan}_plan".encode())
            before = self.conn.execute(BLOCKS).fetchone()
            answer = queries.run(self.conn, query)
            after = self.conn.execute(BLOCKS).fetchone()
        assert before is not None
        assert after is not None
        return answer, after[0] - before[0]

    def read_in_steps(
        self, page: Callable[[Any], Query[Any]], cursor: int | None, plan: str, most: float
    ) -> tuple[list[Any], int]:
        """All rows of a list from a cursor on, and in how many pages; each page reads fewer than `most` blocks."""
        rows, steps = list[Any](), 0
        while cursor is not None or not steps:
            (found, cursor), blocks = self.read(page(cursor), plan)
            assert blocks < most, blocks
            rows += found
            steps += 1
        return rows, steps


@pytest.fixture(scope="module")
def large(postgres_url: str, template: str) -> Iterator[Large]:
    sizes = {"WORKERS": WORKERS, "JOBS": JOBS, "QUIET": QUIET, "ITEMS": ITEMS, "RETRIES": RETRIES, "IN_HAND": IN_HAND}
    with database(postgres_url, template) as name, connect(with_database(postgres_url, name)) as conn:
        conn.execute(FILL.format(**sizes).encode())
        conn.execute("VACUUM (ANALYZE)")
        conn.prepare_threshold = 0
        yield Large(conn)


PLANS = ("generic", "custom")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    "words",
    [
        "tenant:nobody", "actor:nobody", "state:failed", "state:cancelled not:standing job", "is:standing", "key:none",
        "tenant:nobody state:completed", "actor:nobody tenant:1 x", "tenant:nobody metadata.customer:17",
        "since:2200-01-01", "until:2001-01-01", "tenant:nobody since:24h",
    ],
)  # fmt: skip
def test_a_filter_without_a_hit_reads_no_other_jobs(large: Large, plan: str, words: str) -> None:
    answer, blocks = large.read(queries.jobs(parse_search(words)), plan)
    assert (answer, blocks < 250) == (([], None), True), blocks


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    "words", ["state:paused", "is:open tenant:nobody", "is:stalled actor:nobody", "is:failing is:ended"]
)
def test_a_filter_of_open_jobs_reads_those_that_are_open(large: Large, plan: str, words: str) -> None:
    answer, blocks = large.read(queries.jobs(parse_search(words)), plan)
    assert (answer, blocks < 3 * QUIET) == (([], None), True), blocks


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    "words",
    [
        "", "tenant:7", "actor:work", "state:completed", "not:standing", "actor:work tenant:7", "is:ended",
        "metadata.customer:7", "job", "since:24h", "until:2200-01-01", "tenant:7 since:24h", "ended:3d", "not:failing",
        "actor:work state:completed metadata.customer:7", "not:stalled",
    ],
)  # fmt: skip
def test_a_list_reads_the_jobs_that_it_shows(large: Large, plan: str, words: str) -> None:
    """Where one in twenty is in it, those between are read, too."""
    before = large.job("large")
    (found, following), blocks = large.read(queries.jobs(parse_search(words), before=before, limit=20), plan)
    assert (len(found), following) == (20, found[-1]["id"])
    assert blocks < 900, blocks


def test_a_list_of_jobs_that_are_over_reads_nothing_that_moves(large: Large) -> None:
    over = queries.jobs(JobFilter(states=frozenset(["completed"])))
    asked = (
        "SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class"
        " WHERE relnamespace = 'callboard'::regnamespace AND relname ~ '^(running|samples)'"
    )
    with large.conn.transaction():
        large.conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        queries.run(large.conn, over)  # to plan it reads the ends of indexes
        before = large.conn.execute(asked).fetchall()
        found, _ = queries.run(large.conn, over)
        assert (len(found), large.conn.execute(asked).fetchall()) == (50, before)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    "words",
    [
        '"OB 1700 "',
        "metadata.rare:yes",
        'state:completed "B 1700 "',
        "actor:work metadata.rare:yes",
        'is:ended "B 1700 "',
    ],
)
def test_what_no_index_has_is_looked_for_in_steps(large: Large, plan: str, words: str) -> None:
    found, steps = large.read_in_steps(
        lambda before: queries.jobs(parse_search(words), before=before, limit=5), None, plan, queries.LOOK_AT_JOBS / 2
    )
    assert ([job["name"] for job in found], steps) == (["job 1700 of the night"], 2)


@pytest.mark.parametrize("plan", PLANS)
def test_jobs_of_a_state_are_found_without_the_newer_ones_of_others(large: Large, plan: str) -> None:
    with large.conn.transaction(force_rollback=True):
        large.conn.execute("INSERT INTO callboard.jobs (name) SELECT 'new' FROM generate_series(1, %s)", (JOBS // 10,))
        (found, _), blocks = large.read(queries.jobs(parse_search("state:completed"), limit=20), plan)
    large.conn.execute("VACUUM callboard.jobs")
    assert {job["name"].partition(" ")[0] for job in found} == {"job"}
    assert blocks < JOBS / 40, blocks


@pytest.mark.parametrize("plan", PLANS)
def test_failing_jobs_are_found_without_the_others_that_are_over(large: Large, plan: str) -> None:
    with large.conn.transaction(force_rollback=True):
        large.conn.execute("UPDATE callboard.jobs SET state = 'failed' WHERE name = 'job 1700 of the night'")
        (found, following), blocks = large.read(queries.jobs(JobFilter(failing=True), limit=20), plan)
    large.conn.execute("VACUUM callboard.jobs")
    assert ([job["name"] for job in found], following) == (["failing", "job 1700 of the night"], None)
    assert blocks < 3 * QUIET, blocks


@pytest.mark.parametrize("plan", PLANS)
def test_jobs_of_a_time_are_found_without_those_after_it(large: Large, plan: str) -> None:
    newest, oldest = (
        large.conn.execute(f"SELECT {one}(created_at) FROM callboard.jobs WHERE name LIKE 'job %%'".encode()).fetchone()
        for one in ("max", "min")
    )
    assert newest is not None
    assert oldest is not None
    middle = oldest[0] + (newest[0] - oldest[0]) / 2
    found, blocks = large.read(queries.jobs(JobFilter(created_before=middle), limit=20), plan)
    assert len(found[0]) == 20
    assert blocks < 900, blocks
    (found, following), blocks = large.read(queries.jobs(JobFilter(created_after=newest[0]), limit=500), plan)
    assert following is None
    assert [job["name"] for job in found if job["name"].startswith("job ")] == [f"job {JOBS}"]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("tenant", "most"), [(None, 3 * QUIET), ("7", 150), ("nobody", 120)])
def test_jobs_are_counted_by_totals_or_entries_of_an_index(
    large: Large, plan: str, tenant: str | None, most: float
) -> None:
    """But for those that are open, and those that failed within a day, here none."""
    answer, blocks = large.read(queries.job_counts(tenant), plan)
    assert (answer["ended"], answer["failed_today"]) == ({None: JOBS, "7": JOBS / 20, "nobody": 0}[tenant], 0)
    assert blocks < most, blocks


@pytest.mark.parametrize("plan", PLANS)
def test_metrics_read_none_of_the_jobs_that_are_over(large: Large, plan: str) -> None:
    for query in (queries.metric_items(), queries.metric_facts()):
        answer, blocks = large.read(query, plan)
        assert answer
        assert blocks < 3 * QUIET, blocks


@pytest.mark.parametrize("plan", PLANS)
def test_stalled_jobs_are_found_among_those_that_are_open(large: Large, plan: str) -> None:
    found, steps = large.read_in_steps(
        lambda before: queries.jobs(JobFilter(stalled=True), before=before), None, plan, 3_000
    )
    assert len([job for job in found if job["name"] in ("quiet", "retries", "small")]) == QUIET + 2
    assert steps < 12


@pytest.mark.parametrize("plan", PLANS)
def test_a_list_of_quiet_jobs_looks_at_workers_once(large: Large, plan: str) -> None:
    (found, _), blocks = large.read(queries.jobs(limit=QUIET), plan)
    assert {job["stalled"].partition("; ")[2] for job in found} == {f"its workers run items of other jobs ({IN_HAND})"}
    assert blocks < 40 * QUIET, blocks


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("limit", [50, QUIET])
def test_a_list_of_quiet_jobs_reads_once_what_runs_of_one_job(large: Large, plan: str, limit: int) -> None:
    """By the statistics each job that runs has as many rows."""
    with large.conn.transaction(force_rollback=True):
        large.conn.execute(
            "INSERT INTO callboard.running (job_id, started_at, item, attempt, worker)"
            " SELECT %s, now(), n, 1, w.first + n %% %s FROM generate_series(1, %s) n,"
            " (SELECT min(id) AS first FROM callboard.workers) AS w",
            (large.job("large"), WORKERS, 2 * IN_HAND),
        )
        large.conn.execute("DELETE FROM callboard.running WHERE job_id <> %s", (large.job("large"),))
        large.conn.execute("ANALYZE callboard.running")
        (found, _), blocks = large.read(queries.jobs(limit=limit), plan)
    large.conn.execute("VACUUM (ANALYZE) callboard.running")
    assert {job["stalled"].partition("; ")[2] for job in found} == {
        f"its workers run items of other jobs ({2 * IN_HAND})"
    }
    assert blocks < 2_000 + 15 * limit, blocks


@pytest.mark.parametrize("plan", PLANS)
def test_the_status_of_a_job_does_not_read_the_retries_of_another(large: Large, plan: str) -> None:
    answer, blocks = large.read(queries.job(large.job("small")), plan)
    assert answer["stalled"].startswith("waiting for a retry at ")
    assert blocks < 1_000, blocks  # workers and what they have in hand


@pytest.mark.parametrize("plan", PLANS)
def test_items_of_a_state_that_none_is_in_are_not_looked_for(large: Large, plan: str) -> None:
    for state in ("cancelled", "failed", "retrying"):
        answer, blocks = large.read(queries.items(large.job("large"), state=state), plan)
        assert (answer, blocks < 150) == (([], None), True), (state, blocks)


@pytest.mark.parametrize("plan", PLANS)
def test_items_that_failed_are_not_looked_for_once_all_of_them_have_succeeded(large: Large, plan: str) -> None:
    """By a retry, as large as they were many."""
    job = large.job("failing")
    with large.conn.transaction(force_rollback=True):
        large.conn.execute("UPDATE callboard.jobs SET succeeded = failed, failed = 0 WHERE id = %s", (job,))
        answer, blocks = large.read(queries.items(job, state="failed"), plan)
    assert (answer, blocks < 150) == (([], None), True), blocks


@pytest.mark.parametrize("plan", PLANS)
def test_items_of_a_rare_state_are_looked_for_in_steps(large: Large, plan: str) -> None:
    job = large.job("large")
    found, steps = large.read_in_steps(
        lambda after: queries.items(job, state="queued", after=after), -1, plan, queries.LOOK_AT_ITEMS / 10
    )
    assert ([item["item"] for item in found], steps) == ([ITEMS - 1], 3)
    last = queries.items(job, state="queued", after=2**31 - 1)
    assert large.read(last, plan)[0] == ([], None)


@pytest.mark.parametrize("plan", PLANS)
def test_items_of_an_error_are_looked_for_in_steps(large: Large, plan: str) -> None:
    job = large.job("failing")
    found, steps = large.read_in_steps(
        lambda after: queries.items(job, error="Rare", after=after), -1, plan, 6 * queries.LOOK_AT_ATTEMPTS
    )
    assert ([item["item"] for item in found], steps) == ([RETRIES - 5], 3)
    (page, following), blocks = large.read(queries.items(job, error="Common", limit=20), plan)
    assert ([item["item"] for item in page], following) == ([*range(20)], 19)
    assert blocks < 700, blocks
    (page, following), blocks = large.read(queries.items(job, keys=["key 40000", "key 1"]), plan)
    assert ([item["item"] for item in page], following) == ([1, 40_000], None)
    assert blocks < 150, blocks


@pytest.mark.parametrize("plan", PLANS)
def test_a_chart_of_many_samples_reads_its_points(large: Large, plan: str) -> None:
    job = large.job("large")
    rates, blocks = large.read(queries.paces([job]), plan)
    assert len(rates[job]) == queries.PACES
    assert blocks < 2 * queries.PACES, blocks
    points, blocks = large.read(queries.samples(job), plan)
    assert 100 < len(points) <= queries.SAMPLES + 2
    assert blocks < 10 * queries.SAMPLES, blocks


@pytest.mark.parametrize("plan", PLANS)
def test_lanes_are_counted_up_to_a_bound(large: Large, plan: str) -> None:
    lanes, blocks = large.read(queries.lanes(large.job("retries")), plan)
    assert [lane["waiting"] for lane in lanes] == [1_000] * 40
    assert blocks < 1_000, blocks
