-- Every statement that the program sends, but for SET and transaction control. A block a statement:
--   "-- name: NAME" on a line of its own, then what it is for, then the statement.
-- Parameters are psycopg's %s (by position) or %(name)s. esp_ingest/store/queries.py loads this file.

-- name: capabilities
-- What this database is. The license setting exists only where the extension is loaded.
SELECT current_setting('server_version_num')::int,
       coalesce((SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'), ''),
       coalesce(current_setting('timescaledb.license', true), '');

-- name: extension_available
-- Does this server bring TimescaleDB that this database does not have yet?
SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb' AND installed_version IS NULL;

-- name: create_extension
CREATE EXTENSION IF NOT EXISTS timescaledb;

-- name: migration_lock
-- One migration at a time, until the end of the transaction. The number is "esp-ingest" hashed, and means nothing.
SELECT pg_advisory_xact_lock(7046029254386353131);

-- name: create_ledger
-- What has been applied. A migration that a feature asks for is recorded under that feature's name.
CREATE TABLE IF NOT EXISTS esp_ingest_migrations (
    number     integer NOT NULL,
    feature    text NOT NULL,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_by text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (number, feature)
);

-- name: read_ledger
SELECT number, feature, checksum FROM esp_ingest_migrations;

-- name: record_migration
INSERT INTO esp_ingest_migrations (number, feature, name, checksum, applied_by) VALUES (%s, %s, %s, %s, %s);
