-- Run by a superuser (by the owner of the tables, if the role is there) after `migrate`, and after upgrades that add tables. For people at
-- a terminal: `rejects list|show|replay`, `alarms list|ack|shelve|unshelve`. Readings are added by a replay, never changed.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'esp_ingest_operator') THEN
        CREATE ROLE esp_ingest_operator LOGIN;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO esp_ingest_operator', current_database());
END $$;
GRANT esp_ingest TO esp_ingest_operator;  -- a replay writes as the daemon does: writer.sql comes first
GRANT SELECT ON ingest_rejects, diagnostic_results, well_latest, active_diagnostics TO esp_ingest_operator;
GRANT UPDATE ON ingest_rejects TO esp_ingest_operator;
GRANT SELECT, INSERT, UPDATE ON alarm_actions TO esp_ingest_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON alarm_shelves TO esp_ingest_operator;
