-- copy_items: a chunk of bulk items without item keys. Caller: store_chunk.
COPY callboard.items (job_id, item, args) FROM STDIN (FORMAT BINARY)
