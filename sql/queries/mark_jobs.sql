-- mark_jobs: from which items on the messages of open jobs are yet to come: bulk items from `low` on (a publisher may
-- be a window ahead of the watermark), any from `total` on, and all of the jobs with a higher id than `last`.
-- Caller: the search for lost messages. Rows: (job, low, total, last), those that moved last.
SELECT id, CASE WHEN watermark + %(window)s < bulk_end THEN watermark + %(window)s ELSE total END, total,
       (SELECT max(id) FROM callboard.jobs)
FROM callboard.jobs WHERE finished_at IS NULL ORDER BY updated_at DESC LIMIT %(limit)s
