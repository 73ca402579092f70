-- copy_stage: a chunk with item keys, into the staging table. Caller: store_chunk.
COPY pg_temp.callboard_chunk (line, item_key, args) FROM STDIN (FORMAT BINARY)
