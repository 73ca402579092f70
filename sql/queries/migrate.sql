-- name: bound_lock_waits
-- Limits how long a step of a migration waits for a lock, because other sessions wait behind it. Caller: migrate, in its
-- transaction.
SET LOCAL lock_timeout = '2s'

-- name: prepare_schema
-- Create the schema and the list of its migrations, under a lock that ends with the transaction.
-- Caller: migrate, first. CREATE … IF NOT EXISTS alone is not safe when two processes start at once: hence the lock. It
-- also needs the right to create when the object exists, such as a schema that an administrator made for this role: hence
-- the IF.
DO $$ BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('callboard.migrate', 0));
    IF to_regnamespace('callboard') IS NULL THEN
        CREATE SCHEMA IF NOT EXISTS callboard;
    END IF;
    IF to_regclass('callboard.migrations') IS NULL THEN
        CREATE TABLE IF NOT EXISTS callboard.migrations (
            number      integer PRIMARY KEY,
            name        text NOT NULL,
            breaking    boolean NOT NULL,
            applied_at  timestamptz NOT NULL DEFAULT now()
        );
    END IF;
END $$

-- name: note_migration
-- A migration was applied, in the transaction that applied it. Caller: migrate.
INSERT INTO callboard.migrations (number, name, breaking) VALUES (%s, %s, %s)

-- name: applied_migrations
-- The applied migrations. Caller: migrate, each process's check at its start, the heartbeat.
SELECT number, name, breaking FROM callboard.migrations ORDER BY number

-- name: limits_of_sessions
-- The session limits that the role, the database or the server sets. Caller: migrate, and each process's check at its
-- start. Rows: (name, seconds; 0: none), for limits that this server supports.
SELECT name, setting::float8 / 1000 FROM pg_settings WHERE name = ANY (%s) ORDER BY name

-- name: missing_rights
-- The statements that grant this role the missing rights among those that a worker needs.
-- Caller: migrate.check_rights. Rows: (statement).
SELECT 'GRANT ' || missing || ' TO ' || quote_ident(current_user)
FROM (
    SELECT 'USAGE ON SCHEMA callboard' AS missing WHERE NOT has_schema_privilege(to_regnamespace('callboard')::oid, 'USAGE')
    UNION ALL
    SELECT 'SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA callboard'
    WHERE EXISTS (SELECT FROM pg_catalog.pg_class
                  WHERE relnamespace = to_regnamespace('callboard') AND relkind = 'r' AND relname <> 'migrations'
                    AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
                             AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE')))
    UNION ALL
    SELECT 'USAGE ON ALL SEQUENCES IN SCHEMA callboard'
    WHERE EXISTS (SELECT FROM pg_catalog.pg_class
                  WHERE relnamespace = to_regnamespace('callboard') AND relname = 'job_ids'
                    AND NOT has_sequence_privilege(oid, 'USAGE'))
    UNION ALL
    SELECT 'EXECUTE ON ALL FUNCTIONS IN SCHEMA callboard'
    WHERE EXISTS (SELECT FROM pg_catalog.pg_proc
                  WHERE pronamespace = to_regnamespace('callboard') AND NOT has_function_privilege(oid, 'EXECUTE'))
) AS m

-- name: tables_with_hidden_rows
-- One of our tables in which this role may not see or change every row, if there is one. Caller: migrate.check_database.
-- Rows: (name).
SELECT relname FROM pg_catalog.pg_class
WHERE relnamespace = to_regnamespace('callboard') AND relkind IN ('r', 'p') AND row_security_active(oid) ORDER BY 1 LIMIT 1

-- name: idle_triggers
-- One of our triggers that does not run in sessions of this role, if there is one. Caller: migrate.check_database.
-- Rows: (table, trigger).
SELECT c.relname, t.tgname
FROM pg_catalog.pg_trigger AS t
JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
WHERE c.relnamespace = to_regnamespace('callboard') AND p.pronamespace = c.relnamespace
  AND t.tgenabled NOT IN ('A', CASE current_setting('session_replication_role') WHEN 'replica' THEN 'R' ELSE 'O' END)
ORDER BY 1, 2 LIMIT 1
