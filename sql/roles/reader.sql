-- Run by a superuser (by the owner of the tables, if the role is there) after `migrate`, and after upgrades that add tables. For
-- dashboards, notebooks and reports: readings, diagnoses and sums, no payload of a reject, no login, nothing to change.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'esp_ingest_reader') THEN
        CREATE ROLE esp_ingest_reader LOGIN;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO esp_ingest_reader', current_database());
END $$;
ALTER ROLE esp_ingest_reader SET default_transaction_read_only = on;
ALTER ROLE esp_ingest_reader SET statement_timeout = '60s';
-- To compile a question about all columns of the hours and days takes seconds, however few its rows.
ALTER ROLE esp_ingest_reader SET jit = off;
GRANT SELECT ON esp_telemetry, diagnostic_results, well_latest, active_diagnostics, alarm_actions, alarm_shelves, alarm_verdicts
    TO esp_ingest_reader;
GRANT SELECT ON well_stops TO esp_ingest_reader;
GRANT SELECT ON well_newest, well_newest_now, well_newest_stale TO esp_ingest_reader;
GRANT SELECT ON esp_fleet_hourly, esp_fleet_daily TO esp_ingest_reader;
GRANT SELECT ON esp_telemetry_hourly, esp_telemetry_daily, aggregate_hours, aggregate_days, aggregate_state, archive_days
    TO esp_ingest_reader;
