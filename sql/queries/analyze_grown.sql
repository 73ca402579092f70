-- analyze_grown: the planner is told of tables that have grown far beyond what it was told last. On a table of a page or
-- two it reads all of it, and keeps that plan for a prepared statement: when a million items come, each flush would read
-- them all, until autovacuum looks, up to a minute later. ANALYZE also has every connection make its plans anew.
-- Guard: ours to analyze, and nobody is at it: then the statistics come from there. Never waits.
-- Caller: the sweep, each round; submit, after a large chunk. Rows: none.
-- A few pages read whole do no harm; from there four times is no other plan, and seldom enough for ten million items.
DO $$
DECLARE
    grown record;
BEGIN
    FOR grown IN
        SELECT c.relname AS name FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = 'callboard'::regnamespace AND c.relkind = 'r' AND pg_has_role(c.relowner, 'USAGE')
          AND pg_relation_size(c.oid) / current_setting('block_size')::int > 4 * greatest(c.relpages, 0) + 8
    LOOP
        EXECUTE format('ANALYZE (SKIP_LOCKED) callboard.%I', grown.name);
    END LOOP;
END $$
