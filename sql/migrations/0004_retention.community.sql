-- Retention by policy: 30 days of telemetry, 90 of diagnostics, 30 of rejects. Other editions have drop_chunks or DELETE.
SELECT add_retention_policy('esp_telemetry', drop_after => INTERVAL '30 days', if_not_exists => true);
SELECT add_retention_policy('diagnostic_results', drop_after => INTERVAL '90 days', if_not_exists => true);
SELECT add_retention_policy('ingest_rejects', drop_after => INTERVAL '30 days', if_not_exists => true);
