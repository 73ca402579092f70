-- reopen_job: items of a job were given another attempt; when it was over, it is open again, and sealed as it stands.
-- Transition: completed | failed | cancelled -> pending | running. Guard: over or not, as it was when they were chosen,
-- and neither being stopped nor leaving. `whole`: the bulk range goes on where it was; else everything to come is in the outbox.
-- A deadline that passed is forgotten. A stage that was partly made is made on, so it isn't sealed.
-- Caller: controls.retry. Rows: (id); none: overtaken, undo.
UPDATE callboard.jobs AS j
SET failed = failed - %(failed)s, skipped = skipped - %(skipped)s, cancelled = cancelled + %(rest)s - %(cancelled)s,
    retries = retries + %(retries)s, crashes = crashes - %(crashes)s, redo = %(redo)s + CASE WHEN %(over)s THEN 0 ELSE redo END,
    retrying = CASE WHEN %(over)s THEN 0 ELSE retrying END,
    published = CASE WHEN %(over)s AND NOT %(whole)s THEN total ELSE published + %(published)s END,
    watermark = CASE WHEN %(over)s AND NOT %(whole)s THEN bulk_end ELSE watermark END,
    suspect_below = CASE WHEN %(over)s THEN greatest(suspect_below, watermark + %(window)s) ELSE suspect_below END,
    publish_token = publish_token + %(over)s::int,
    publish_until = CASE WHEN NOT %(over)s THEN publish_until END,
    state = CASE WHEN NOT %(over)s THEN state WHEN started_at IS NULL THEN 'pending' ELSE 'running' END,
    reason = CASE WHEN NOT %(over)s THEN reason END,
    limits = CASE WHEN %(over)s AND deadline < now() THEN limits - 'deadline' ELSE limits END,
    deadline = CASE WHEN NOT %(over)s OR deadline >= now() THEN deadline END,
    sealed = sealed OR %(over)s AND coalesce(stage, 0) = 0,
    maker = CASE WHEN NOT %(over)s THEN maker END,
    finished_at = NULL,
    epoch = epoch + %(over)s::int,
    told_at = CASE WHEN %(over)s THEN clock_timestamp() ELSE told_at END,
    updated_at = now()
WHERE id = %(job)s AND stopping IS NULL AND leaving_at IS NULL AND (finished_at IS NOT NULL) = %(over)s
RETURNING id
