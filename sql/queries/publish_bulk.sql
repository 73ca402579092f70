-- publish_bulk: a stretch of bulk items is confirmed. The watermark only moves forward.
-- Guard: the claim is still this publisher's (its token). Caller: the publisher. Rows: (go on); none: taken over, stop.
-- `keep` renews the claim while the job goes on; otherwise it is given back, with what is uncertain beyond the watermark
-- marked suspect. `unserved`: nothing was published, so its turn is given back too.
UPDATE callboard.jobs
SET watermark = greatest(watermark, %(watermark)s),
    published = published + %(published)s,
    suspect_below = greatest(suspect_below, %(suspect_below)s),
    publish_until = CASE WHEN %(keep)s AND stopping IS NULL AND state <> 'paused'
                         THEN now() + make_interval(secs => %(lease)s) END,
    served_at = CASE WHEN %(unserved)s THEN %(served_at)s ELSE served_at END,
    updated_at = CASE WHEN %(published)s > 0 THEN now() ELSE updated_at END
WHERE id = %(job)s AND publish_token = %(token)s AND publish_until IS NOT NULL
RETURNING stopping IS NULL AND state <> 'paused'
