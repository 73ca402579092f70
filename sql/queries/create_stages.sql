-- create_stages: the stages of a new job of stages, in its transaction. Caller: stages.create.
INSERT INTO callboard.jobs (
    parent_id, stage, name, actor, queue, makes, on_failure, chunk, tenant, created_by,
    limits, fail_count, fail_share, fail_sample, concurrency, rate, priority, deadline, not_before,
    lane_by, lane_width
)
SELECT %(parent)s, s.place - 1, s.name, s.actor, s.queue, s.makes, s.on_failure, nullif(s.chunk, 1),
       %(tenant)s, %(created_by)s,
       %(limits)s::jsonb, %(fail_count)s::bigint, %(fail_share)s::float8, %(fail_sample)s::bigint, %(concurrency)s::int,
       %(rate)s::float8, %(priority)s::int, %(deadline)s::timestamptz, %(not_before)s::timestamptz,
       %(lane_by)s::text, %(lane_width)s::int
FROM unnest(%(names)s::text[], %(actors)s::text[], %(queues)s::text[], %(makes)s::text[], %(on_failure)s::text[],
            %(chunks)s::int[]) WITH ORDINALITY AS s (name, actor, queue, makes, on_failure, chunk, place)
ORDER BY s.place
