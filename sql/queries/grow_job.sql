-- grow_job: a chunk was stored. Caller: store_chunk, in its transaction, under the job's lock.
UPDATE callboard.jobs 
SET total = total + %(stored)s, bulk_end = total + %(stored)s, consumed = consumed + %(read)s, updated_at = now()
 WHERE id = %(job)s
