-- Run by a superuser (by the owner of the tables, if the role is there) after `migrate`, and after upgrades that add tables. The
-- daemon's user: it adds, and neither changes nor deletes a reading or a reject. A missing right is named by `check`.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'esp_ingest') THEN
        CREATE ROLE esp_ingest LOGIN;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO esp_ingest', current_database());
END $$;
GRANT SELECT ON esp_ingest_migrations, alarm_actions, alarm_shelves TO esp_ingest;
GRANT SELECT, INSERT ON esp_telemetry, ingest_rejects, alarm_limits_history TO esp_ingest;
GRANT SELECT, INSERT, UPDATE ON diagnostic_results, diagnostic_state, diagnostics_cursor TO esp_ingest;
GRANT SELECT, INSERT, UPDATE ON diagnostics_publisher TO esp_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON diagnostics_outbox, share_group_members TO esp_ingest;
GRANT SELECT, INSERT, UPDATE ON mqtt_sessions TO esp_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON reject_origins TO esp_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON well_newest, well_newest_stale TO esp_ingest;  -- without: well_latest is slow
GRANT SELECT ON well_newest_now TO esp_ingest;  -- the same
DO $$ BEGIN  -- a duplicate goes through a temporary table; every user has this right unless it was revoked
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO esp_ingest', current_database());
END $$;
