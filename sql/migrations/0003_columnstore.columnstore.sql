-- Columnstore: 7 days for telemetry, 14 for diagnostics, which are still upserted while they are open.
-- Segments are what is asked for by equality; the order gives each batch a narrow range of time.
ALTER TABLE esp_telemetry SET (
    timescaledb.enable_columnstore,
    timescaledb.segmentby = 'well_id',
    timescaledb.orderby = '"timestamp" DESC'
);
CALL add_columnstore_policy('esp_telemetry', after => INTERVAL '7 days', if_not_exists => true);

ALTER TABLE diagnostic_results SET (
    timescaledb.enable_columnstore,
    timescaledb.segmentby = 'well_id, severity',
    timescaledb.orderby = '"timestamp" DESC'
);
CALL add_columnstore_policy('diagnostic_results', after => INTERVAL '14 days', if_not_exists => true);
