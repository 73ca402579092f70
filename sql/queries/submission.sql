-- name: create_job
-- Create a job for a submission, or find the job with this key. The submission of an unfinished job is continued; `alone`:
-- unless another submission of it is running. A job that is open for more items is not continued.
-- Caller: submit, job(). Rows: one, SubmittedJob and `asked`.
WITH made AS (
    INSERT INTO callboard.jobs AS j
        (name, key, tenant, actor, queue, metadata, created_by, submitting_until, held, chunk, callbacks, asked,
         trace, {limits})
    VALUES (%(name)s, %(key)s, %(tenant)s, %(actor)s, %(queue)s, %(metadata)s::jsonb, %(created_by)s,
            now() + make_interval(secs => %(SUBMISSION_LEASE_SECONDS)s), %(held)s, %(chunk)s::int, %(callbacks)s::jsonb,
            %(asked)s::jsonb, %(trace)s::jsonb, {limit_values})
    ON CONFLICT (tenant, key) WHERE key IS NOT NULL DO UPDATE SET submitting_until = excluded.submitting_until
    WHERE NOT j.sealed AND j.finished_at IS NULL AND j.stopping IS NULL AND j.stages IS NULL
      AND j.submitting_until IS NOT NULL AND (NOT %(alone)s OR j.submitting_until <= now())
    RETURNING id, state, sealed, consumed, digest, held, false AS elsewhere, false AS open, asked
)
SELECT id, state::text, sealed, consumed, digest, held, elsewhere, open, asked FROM made
UNION ALL
SELECT id, state::text, sealed, consumed, digest, held,
       NOT sealed AND finished_at IS NULL AND coalesce(submitting_until > now(), false),
       NOT sealed AND finished_at IS NULL AND submitting_until IS NULL, asked FROM callboard.jobs
WHERE key = %(key)s AND tenant = %(tenant)s
LIMIT 1

-- name: free_key
-- An ended job gives up its key. Guard: it is over. Caller: create_job, stages.create.
UPDATE callboard.jobs SET key = NULL WHERE tenant = %(tenant)s AND key = %(key)s AND finished_at IS NOT NULL

-- name: lock_submission
-- The progress of a job's submission, locked until its next chunk is committed.
-- Caller: submission.lock. Rows: SubmissionState; none: no such job.
-- A client that stops sending during the following COPY counts as active: see end_frozen_copies.
SELECT total, consumed, sealed, finished_at IS NOT NULL OR stopping IS NOT NULL,
       submitting_until IS NULL AND standing_on IS NULL AND stages IS NULL AND stage IS NULL,
       submitting_until > now()
FROM callboard.jobs, (SELECT set_config('statement_timeout', concat(%(COPY_LIMIT_SECONDS)s::float8 * 1000, 'ms'), true)) AS copy_limit
WHERE id = %(job)s FOR NO KEY UPDATE OF jobs

-- name: add_to_total
-- Items were stored. Caller: submission.add_to_total, in their transaction, under the job's lock.
UPDATE callboard.jobs
SET total = total + %(stored)s, bulk_end = CASE WHEN held THEN bulk_end ELSE total + %(stored)s END,
    consumed = consumed + %(read)s,
    digest = coalesce(%(digest)s::bytea, digest), updated_at = now()
WHERE id = %(job)s

-- name: copy_items
-- A chunk of bulk items without item keys. Caller: store_chunk.
COPY callboard.items (job_id, item, args) FROM STDIN (FORMAT BINARY)

-- name: create_staging_table
-- The table in which a chunk with item keys is made unique. It ends with the transaction. Caller: store_chunk.
CREATE TEMPORARY TABLE callboard_chunk (line integer, item_key text, args bytea) ON COMMIT DROP

-- name: copy_to_staging
-- A chunk with item keys, into the staging table. Caller: store_chunk.
COPY pg_temp.callboard_chunk (line, item_key, args) FROM STDIN (FORMAT BINARY)

-- name: insert_staged_items
-- Insert the staged inputs with new item keys, the first of each key, numbered from the job's total.
-- Caller: store_chunk, under the job's lock. The total grows by the number of rows.
INSERT INTO callboard.items (job_id, item, item_key, args)
SELECT %(job)s, %(total)s + row_number() OVER (ORDER BY line) - 1, item_key, args
FROM (
    SELECT DISTINCT ON (item_key) line, item_key, args FROM pg_temp.callboard_chunk AS c
    WHERE NOT EXISTS (SELECT FROM callboard.items AS i WHERE i.job_id = %(job)s AND i.item_key = c.item_key OFFSET 0)
    ORDER BY item_key, line
) AS fresh

-- name: seal_job
-- Seal a job: it takes no more items from outside. Transition: open -> sealed; and completed if all its items are final.
-- Guard: neither sealed nor stopped, nor a job of stages. Caller: submit, job(), the sweep. Rows: (state); none: already
-- sealed or stopped.
UPDATE callboard.jobs
SET sealed = true, held = false, bulk_end = CASE WHEN held THEN total ELSE bulk_end END,
    state = CASE WHEN stopping IS NULL AND succeeded + failed + skipped + cancelled = total THEN 'completed' ELSE state END,
    finished_at = CASE WHEN stopping IS NULL AND succeeded + failed + skipped + cancelled = total THEN now() END,
    updated_at = now()
WHERE id = %(job)s AND NOT sealed AND finished_at IS NULL AND stages IS NULL
RETURNING state::text

-- name: fail_submission
-- A submission broke off and can't be continued. Transition: open -> failed, with the reason.
-- Guard: neither sealed nor stopped. Caller: submit.
UPDATE callboard.jobs
SET state = 'failed', reason = %(reason)s, finished_at = now(), updated_at = now(), epoch = epoch + 1, control_at = clock_timestamp()
WHERE id = %(job)s AND NOT sealed AND finished_at IS NULL AND stopping IS NULL

-- name: open_job
-- All items of a submission are stored; the job takes more items from outside until it is sealed.
-- Guard: neither sealed nor stopped. Caller: submit over HTTP. Rows: (id); none: already sealed or stopped.
UPDATE callboard.jobs
SET submitting_until = NULL, held = false, bulk_end = CASE WHEN held THEN total ELSE bulk_end END, updated_at = now()
WHERE id = %(job)s AND NOT sealed AND finished_at IS NULL AND stopping IS NULL
RETURNING id

-- name: release_submission
-- A submission broke off; the next one may continue it at once. Guard: open, and not open for more items.
-- Caller: submit over HTTP.
UPDATE callboard.jobs SET submitting_until = now()
WHERE id = %(job)s AND NOT sealed AND finished_at IS NULL AND submitting_until > now()

-- name: discard_submission
-- A submission was refused before anything of it was published: no callbacks are called, and the job, with its stages, may
-- be marked as deleted. Transition: open -> failed. Guard: held, neither sealed nor stopped.
-- Caller: submission.discard_job. Rows: (id of the whole job), one per job. Lock order: jobs by id.
WITH whole AS (
    SELECT coalesce(parent_id, id) AS id FROM callboard.jobs
    WHERE id = %(job)s AND held AND NOT sealed AND finished_at IS NULL AND stopping IS NULL
), refused AS (
    SELECT j.id FROM (
        SELECT id FROM whole UNION ALL
        SELECT s.id FROM whole CROSS JOIN LATERAL (
            SELECT id FROM callboard.jobs AS s WHERE s.parent_id = whole.id OFFSET 0
        ) AS s ORDER BY id
    ) AS one CROSS JOIN LATERAL (
        SELECT id FROM callboard.jobs AS j
        WHERE j.id = one.id AND j.finished_at IS NULL AND j.stopping IS NULL AND NOT j.sealed OFFSET 0 FOR NO KEY UPDATE
    ) AS j
)
UPDATE callboard.jobs AS j SET state = 'failed', finished_at = now(), callbacks = NULL
WHERE j.id IN (SELECT id FROM refused)
RETURNING coalesce(parent_id, id)

-- name: renew_submissions
-- The submissions of these jobs are still running, even if their sources are slow.
-- Guard: neither sealed nor stopped. Caller: the submission lease. Rows: (id) of those that were skipped, because another
-- transaction has locked them. Lock order: jobs by id without waiting for any.
WITH kept AS (
    SELECT id FROM callboard.jobs WHERE id = ANY(%(jobs)s) AND NOT sealed AND finished_at IS NULL
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), renewed AS (
    UPDATE callboard.jobs AS j SET submitting_until = now() + make_interval(secs => %(SUBMISSION_LEASE_SECONDS)s)
    FROM kept WHERE j.id = kept.id
)
SELECT id FROM callboard.jobs
WHERE id = ANY(%(jobs)s) AND NOT sealed AND finished_at IS NULL AND id NOT IN (SELECT id FROM kept) ORDER BY id

-- name: fail_abandoned_submissions
-- Fail jobs without a key whose submitter has died: their submission can't be continued.
-- Transition: open -> failed, with a reason that says what to do. Guard: neither sealed nor stopped, the lease expired.
-- Only the first stage of a job of stages is submitted; its key is the parent's.
-- A job with a key stays open, and `stalled` says so (job_view.py). Caller: the sweep; without `writes` it only finds
-- them. Rows: (id).
-- Lock order: jobs by id without waiting for any: the lease of a locked job could not be renewed. Its turns: for
-- LOCK_WAIT_SECONDS at most.
WITH abandoned AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE finished_at IS NULL AND stopping IS NULL AND NOT sealed AND stages IS NULL AND coalesce(stage, 0) = 0
      AND key IS NULL AND submitting_until < now() AND {of_page}
      AND NOT EXISTS (SELECT FROM callboard.jobs AS p WHERE p.id = j.parent_id AND p.key IS NOT NULL)
    ORDER BY j.id FOR NO KEY UPDATE SKIP LOCKED
), closed AS (
    UPDATE callboard.jobs AS j
    SET state = 'failed', finished_at = now(), updated_at = now(), epoch = epoch + 1, control_at = clock_timestamp(),
        reason = 'its submission broke off: its process was not heard of any more. ' || total || ' items were stored, '
                 || succeeded + failed + skipped || ' of them are done, and the rest is not run. Submit it anew: with a'
                 || ' key it stays open, to go on where it broke off'
    FROM abandoned, {lock_wait} WHERE j.id = abandoned.id AND %(writes)s
)
SELECT id FROM abandoned

-- name: known_actor
-- The queue and the arguments of an actor that a worker announced. Caller: submit. Rows: (queue, signature) or none.
SELECT queue, signature FROM callboard.actors WHERE name = %(name)s
