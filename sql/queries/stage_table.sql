-- stage_table: where a chunk with item keys is made unique. It ends with the transaction. Caller: store_chunk.
CREATE TEMPORARY TABLE callboard_chunk (line integer, item_key text, args bytea) ON COMMIT DROP
