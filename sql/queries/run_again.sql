-- name: job_to_run_again
-- The options with which a job was submitted. Caller: run_again._create. Rows: one, OldJob; none: no such job, or not
-- of this tenant.
SELECT name, tenant, actor, queue, metadata, chunk, callbacks, limits
FROM callboard.jobs WHERE id = %(job)s AND deleted_at IS NULL AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)

-- name: lock_source
-- Lock a job whose items are copied: it is neither reopened nor deleted before this transaction ends.
-- Caller: run_again._copy_chunk. Rows: (total); none: it is open again, or deleted. Lock order: it has the lower id.
SELECT total FROM callboard.jobs WHERE id = %(source)s AND finished_at IS NOT NULL AND deleted_at IS NULL FOR SHARE

-- name: copy_old_items
-- Copy a range of the bulk items of a job to a new one. `states`: only items with these final states (NULL: all).
-- Items that an ended job has not run count as cancelled. Caller: run_again._copy_chunk, under the locks of both jobs.
INSERT INTO callboard.items (job_id, item, item_key, args)
SELECT %(job)s, %(total)s + row_number() OVER (ORDER BY i.item) - 1, i.item_key, i.args
FROM callboard.items AS i
WHERE i.job_id = %(source)s AND i.item >= %(low)s AND i.item < %(high)s AND i.sent_at IS NULL
  AND (%(states)s::text[] IS NULL
       OR CASE WHEN i.state IN ('waiting', 'retrying') THEN 'cancelled' ELSE i.state::text END = ANY (%(states)s::text[]))
