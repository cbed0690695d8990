-- Run by a superuser (by the owner of the tables, if the role is there) after `migrate`, and after upgrades that add tables. The user of
-- `esp-ingest api`: it reads, and writes only what operators do and who signed in. `esp-ingest users` needs the owner.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'esp_ingest_api') THEN
        CREATE ROLE esp_ingest_api LOGIN;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO esp_ingest_api', current_database());
END $$;
GRANT SELECT ON esp_telemetry, diagnostic_results, ingest_rejects, alarm_actions, alarm_shelves, alarm_verdicts, well_latest,
    diagnostic_rules_off, archive_days, api_users, api_tokens, api_refresh_tokens, api_audit TO esp_ingest_api;
GRANT SELECT ON well_stops TO esp_ingest_api;  -- /api/v1/losses
GRANT SELECT ON well_newest, well_newest_stale TO esp_ingest_api;  -- the live stream
GRANT SELECT ON aggregate_hours, aggregate_days TO esp_ingest_api;  -- without it, only what readings are there for
GRANT INSERT, UPDATE ON alarm_actions, alarm_verdicts TO esp_ingest_api;  -- UPDATE on alarm_actions is for its lock: a trigger refuses a change
GRANT INSERT, UPDATE, DELETE ON alarm_shelves, api_refresh_tokens TO esp_ingest_api;
GRANT UPDATE (state) ON diagnostic_results TO esp_ingest_api;
GRANT UPDATE (password_hash) ON api_users TO esp_ingest_api;  -- the same password, hashed with newer parameters
GRANT INSERT ON diagnostics_outbox, api_audit TO esp_ingest_api;
