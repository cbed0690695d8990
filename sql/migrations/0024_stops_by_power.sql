-- works with programs of schema >= 12
-- A stop that was not planned and lies inside a common stop of its well (many wells stopped at once, see
-- docs/decisions/0016-common-stops.md) is lost to "power" unless an operator says otherwise: with a reason, given for the stop or for
-- the common stop, or by calling the common stop false. The columns are as they were.
CREATE OR REPLACE VIEW well_stops AS
SELECT d.well_id,
       d."timestamp" AS stopped_at,
       d.cleared_at AS started_at,
       d.diagnosis = 'planned_stop' AS planned,
       d.severity,
       coalesce(nullif(v.stop_reason, ''), nullif(v.cause, ''), common.reason) AS reason,
       (d.telemetry_snapshot #>> '{median_24h,flow_rate}')::double precision AS usual_flow_rate
FROM diagnostic_results d
LEFT JOIN alarm_verdicts v ON v.well_id = d.well_id AND v.diagnosis = d.diagnosis AND v.raised_at = d."timestamp"
LEFT JOIN LATERAL (
    SELECT coalesce(nullif(cv.stop_reason, ''), nullif(cv.cause, ''), CASE WHEN cv.verdict = 'false' THEN NULL ELSE 'power' END) AS reason
    FROM diagnostic_results c
    LEFT JOIN alarm_verdicts cv ON cv.well_id = c.well_id AND cv.diagnosis = c.diagnosis AND cv.raised_at = c."timestamp"
    WHERE d.diagnosis = 'trip' AND c.well_id = d.well_id AND c.diagnosis = 'common_stop'
      AND c."timestamp" < coalesce(d.cleared_at, 'infinity') AND coalesce(c.cleared_at, 'infinity') > d."timestamp"
    ORDER BY c."timestamp"
    LIMIT 1
) AS common ON true
WHERE d.diagnosis IN ('trip', 'planned_stop');
