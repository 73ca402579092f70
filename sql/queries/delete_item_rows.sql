-- delete_item_rows: what belongs to a stretch of items that are gone. Every table whose rows have a job_id and an item is
-- here, but for `errors`, whose item is an example; a test compares. Caller: leaving.clear, after delete_items.
-- Rows: none. Lock order: nobody else holds more than one of these rows without having held its item.
WITH r AS (
    DELETE FROM callboard.results WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
), a AS (
    DELETE FROM callboard.attempts WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
), h AS (
    DELETE FROM callboard.running WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
), l AS (
    DELETE FROM callboard.lanes WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
)
DELETE FROM callboard.outbox WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
