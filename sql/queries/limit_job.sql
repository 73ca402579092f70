-- limit_job: what a job may do at most, from now on. Caller: controls.limit, which has the row locked.
UPDATE callboard.jobs
SET limits = %(limits)s::jsonb, fail_count = %(fail_count)s, fail_share = %(fail_share)s, fail_sample = %(fail_sample)s,
    concurrency = %(concurrency)s, rate = %(rate)s, priority = %(priority)s, deadline = %(deadline)s,
    not_before = %(not_before)s, keep = %(keep)s, lane_by = %(lane_by)s, lane_width = %(lane_width)s, updated_at = now()
WHERE id = %(job)s
