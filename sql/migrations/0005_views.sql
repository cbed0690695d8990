-- The newest reading of each well. SELECT DISTINCT would read the whole table: this walks the primary key from one
-- well_id to the next (a loose index scan), and takes one row of each from the same key.
CREATE VIEW well_latest AS
WITH RECURSIVE well AS (
    (SELECT well_id FROM esp_telemetry ORDER BY well_id LIMIT 1)
    UNION ALL
    SELECT (SELECT t.well_id FROM esp_telemetry t WHERE t.well_id > well.well_id ORDER BY t.well_id LIMIT 1)
    FROM well
    WHERE well.well_id IS NOT NULL
)
SELECT latest.*
FROM well
CROSS JOIN LATERAL (
    SELECT * FROM esp_telemetry t WHERE t.well_id = well.well_id ORDER BY t."timestamp" DESC LIMIT 1
) AS latest
WHERE well.well_id IS NOT NULL;

-- Occurrences that have not cleared.
CREATE VIEW active_diagnostics AS
SELECT * FROM diagnostic_results WHERE cleared_at IS NULL;
