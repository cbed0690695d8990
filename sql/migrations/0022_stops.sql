-- works with programs of schema >= 12
-- Stops of each well: since when and until when, planned or not, why (the last word of an operator, see alarm_verdicts), and
-- the rate that the well had by its 24-hour median before (bbl/d; NULL where flow is not measured or was not yet known).
CREATE VIEW well_stops AS
SELECT d.well_id,
       d."timestamp" AS stopped_at,
       d.cleared_at AS started_at,
       d.diagnosis = 'planned_stop' AS planned,
       d.severity,
       coalesce(nullif(v.stop_reason, ''), nullif(v.cause, '')) AS reason,
       (d.telemetry_snapshot #>> '{median_24h,flow_rate}')::double precision AS usual_flow_rate
FROM diagnostic_results d
LEFT JOIN alarm_verdicts v ON v.well_id = d.well_id AND v.diagnosis = d.diagnosis AND v.raised_at = d."timestamp"
WHERE d.diagnosis IN ('trip', 'planned_stop');
