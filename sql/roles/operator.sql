-- Run by a superuser (by the owner of the tables, if the role is there) after `migrate`, and after upgrades that add tables. For people at
-- a terminal: `rejects list|show|replay`, `alarms list|ack|shelve|unshelve`. Readings are added by a replay, never changed; of a reject and
-- of an occurrence nothing changes but what became of it.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'esp_ingest_operator') THEN
        CREATE ROLE esp_ingest_operator LOGIN;
    END IF;
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO esp_ingest_operator', current_database());
    -- Earlier versions of this file gave all rights of the daemon's user, and all columns of a reject.
    IF EXISTS (SELECT FROM pg_auth_members WHERE member = 'esp_ingest_operator'::regrole AND roleid = to_regrole('esp_ingest')) THEN
        REVOKE esp_ingest FROM esp_ingest_operator;
    END IF;
END $$;
REVOKE UPDATE ON ingest_rejects FROM esp_ingest_operator;
GRANT SELECT ON esp_ingest_migrations, esp_telemetry, ingest_rejects, diagnostic_results, diagnostic_state, well_latest, active_diagnostics,
    alarm_actions, alarm_shelves, alarm_verdicts TO esp_ingest_operator;
-- A replay adds as the daemon does.
GRANT INSERT ON esp_telemetry, ingest_rejects TO esp_ingest_operator;
GRANT SELECT, INSERT, UPDATE ON mqtt_sessions TO esp_ingest_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON reject_origins TO esp_ingest_operator;
GRANT UPDATE (replayed_at, replay_outcome) ON ingest_rejects TO esp_ingest_operator;
-- Alarms.
GRANT UPDATE (state) ON diagnostic_results TO esp_ingest_operator;
GRANT INSERT ON diagnostics_outbox TO esp_ingest_operator;
GRANT INSERT, UPDATE ON alarm_actions TO esp_ingest_operator;  -- UPDATE is for the lock alone: a trigger refuses a change
GRANT SELECT, INSERT, UPDATE, DELETE ON alarm_shelves TO esp_ingest_operator;
