-- Hypertables, in every edition. Chunks: a day of telemetry, a week of diagnostics, a day of rejects (kept by the day).
-- migrate_data: a plain database may have been filled before it gained the extension.
SELECT create_hypertable('esp_telemetry', by_range('timestamp', INTERVAL '1 day'),
                         create_default_indexes => false, migrate_data => true);
SELECT create_hypertable('diagnostic_results', by_range('timestamp', INTERVAL '7 days'),
                         create_default_indexes => false, migrate_data => true);
SELECT create_hypertable('ingest_rejects', by_range('received_at', INTERVAL '1 day'),
                         create_default_indexes => false, migrate_data => true);
