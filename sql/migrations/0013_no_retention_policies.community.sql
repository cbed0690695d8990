-- works with programs of schema >= 12
-- Deletion belongs to `esp-ingest lifecycle`, which proves the copy first; a policy cannot wait for that (decision 0011).
SELECT remove_retention_policy(hypertable, if_exists => true)
FROM (VALUES ('esp_telemetry'::regclass), ('diagnostic_results'), ('ingest_rejects')) AS ours (hypertable);
