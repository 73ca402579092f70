-- delete_items: a stretch of a leaving job's items goes. An outcome that is being recorded is waited for: what it adds to
-- its item is seen by the next statement, delete_item_rows, in the same transaction. One that comes later finds no item.
-- Caller: leaving.clear. Rows: none, counted. Lock order: items by key.
WITH held AS (
    SELECT job_id, item FROM callboard.items WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
    ORDER BY item FOR UPDATE
)
DELETE FROM callboard.items AS i USING held AS h WHERE i.job_id = h.job_id AND i.item = h.item
