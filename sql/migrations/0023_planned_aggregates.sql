-- works with programs of schema >= 12
-- What the planner looks at is what a question about a month costs, next to the readings themselves. So:
-- * Hours that are kept are read without a condition of the view's own: it had the planner expect a two-hundredth of them,
--   and fetch a month by an index, one row at a time. It is not needed, because an hour is kept and hours_to moved behind it in
--   one transaction.
-- * Later hours are gathered in the view's own text, from readings of the last two days, a condition that TimescaleDB's planner
--   knows how to use: it looks at three chunks instead of all. Only if nothing was kept for so long (hours_to is older), a
--   function that is not merged into the question gathers them.
-- * A mean so small that its division would underflow, which is an error in PostgreSQL, is 0: below 1e-290 no signal has a meaning.
-- * The first and the last value of a signal are the ends of an array in the order of time, and times are added up as intervals.
--   The figures are the same; the numbers in between were what gathering cost most.

-- Rows that a killed run might have left beyond hours_to are gathered again.
DELETE FROM aggregate_seen WHERE bucket >= (SELECT hours_to FROM aggregate_state);
DELETE FROM aggregate_hours WHERE bucket >= (SELECT hours_to FROM aggregate_state);

-- Means of older versions that would underflow where days or a question gather them again: see above.
DO $$
DECLARE
    kept text;
    mean text;
BEGIN
    FOREACH kept IN ARRAY ARRAY['aggregate_hours', 'aggregate_days'] LOOP
        FOR mean IN SELECT attname FROM pg_attribute WHERE attrelid = kept::regclass AND attname LIKE '%\_mean' LOOP
            EXECUTE format('UPDATE %I SET %I = 0 WHERE %2$I <> 0 AND abs(%2$I) < 1e-290', kept, mean);
        END LOOP;
    END LOOP;
END
$$;

-- Hours come in the order of time. With an exact index on it, the planner would rather fetch a month by it than read the table.
DROP INDEX aggregate_hours_bucket_idx;
CREATE INDEX aggregate_hours_bucket_idx ON aggregate_hours USING brin (bucket) WITH (pages_per_range = 16, autosummarize = on);

-- A reading counts for the time to the well's next reading, 15 minutes at most: see 0016. The window's order by hour and time is
-- the order by time, and saves sorting a second time.
CREATE OR REPLACE FUNCTION aggregated_hours(since timestamptz, until timestamptz) RETURNS TABLE (
    well_id text,
    bucket timestamptz,
    count bigint,
    flow_rate_min double precision, flow_rate_max double precision, flow_rate_mean double precision, flow_rate_first double precision, flow_rate_last double precision, flow_rate_count bigint,
    pip_min double precision, pip_max double precision, pip_mean double precision, pip_first double precision, pip_last double precision, pip_count bigint,
    motor_current_min double precision, motor_current_max double precision, motor_current_mean double precision, motor_current_first double precision, motor_current_last double precision, motor_current_count bigint,
    motor_temp_min double precision, motor_temp_max double precision, motor_temp_mean double precision, motor_temp_first double precision, motor_temp_last double precision, motor_temp_count bigint,
    vibration_min double precision, vibration_max double precision, vibration_mean double precision, vibration_first double precision, vibration_last double precision, vibration_count bigint,
    vsd_frequency_min double precision, vsd_frequency_max double precision, vsd_frequency_mean double precision, vsd_frequency_first double precision, vsd_frequency_last double precision, vsd_frequency_count bigint,
    gor_min double precision, gor_max double precision, gor_mean double precision, gor_first double precision, gor_last double precision, gor_count bigint,
    discharge_pressure_min double precision, discharge_pressure_max double precision, discharge_pressure_mean double precision, discharge_pressure_first double precision, discharge_pressure_last double precision, discharge_pressure_count bigint,
    wellhead_pressure_min double precision, wellhead_pressure_max double precision, wellhead_pressure_mean double precision, wellhead_pressure_first double precision, wellhead_pressure_last double precision, wellhead_pressure_count bigint,
    casing_pressure_min double precision, casing_pressure_max double precision, casing_pressure_mean double precision, casing_pressure_first double precision, casing_pressure_last double precision, casing_pressure_count bigint,
    intake_temp_min double precision, intake_temp_max double precision, intake_temp_mean double precision, intake_temp_first double precision, intake_temp_last double precision, intake_temp_count bigint,
    leakage_current_min double precision, leakage_current_max double precision, leakage_current_mean double precision, leakage_current_first double precision, leakage_current_last double precision, leakage_current_count bigint,
    drive_voltage_min double precision, drive_voltage_max double precision, drive_voltage_mean double precision, drive_voltage_first double precision, drive_voltage_last double precision, drive_voltage_count bigint,
    running_seconds double precision
) LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH reading AS (
        SELECT t.*, date_bin(INTERVAL '1 hour', t."timestamp", TIMESTAMPTZ '2000-01-01 00:00:00Z') AS hour,
               CASE WHEN (t.vsd_frequency IS NOT NULL OR t.motor_current IS NOT NULL)
                     AND coalesce(t.vsd_frequency > 5, true) AND coalesce(t.motor_current > 1, true)
                    THEN least(lead(t."timestamp") OVER (PARTITION BY t.well_id ORDER BY date_bin(INTERVAL '1 hour', t."timestamp", TIMESTAMPTZ '2000-01-01 00:00:00Z'), t."timestamp"),
                               t."timestamp" + INTERVAL '15 minutes') END AS runs_to
        FROM esp_telemetry t
        WHERE t."timestamp" >= since - INTERVAL '15 minutes' AND t."timestamp" < until AND isfinite(t."timestamp")
    ),
    gathered AS (
        SELECT r.well_id, r.hour, count(*) AS count,
               min(r.flow_rate) AS flow_rate_min, max(r.flow_rate) AS flow_rate_max, sum(r.flow_rate) FILTER (WHERE abs(r.flow_rate) < 1e100) AS flow_rate_sum,
               count(*) FILTER (WHERE abs(r.flow_rate) < 1e100) AS flow_rate_count,
               array_agg(r.flow_rate ORDER BY r."timestamp") FILTER (WHERE r.flow_rate IS NOT NULL) AS flow_rate_values,
               min(r.pip) AS pip_min, max(r.pip) AS pip_max, sum(r.pip) FILTER (WHERE abs(r.pip) < 1e100) AS pip_sum,
               count(*) FILTER (WHERE abs(r.pip) < 1e100) AS pip_count,
               array_agg(r.pip ORDER BY r."timestamp") FILTER (WHERE r.pip IS NOT NULL) AS pip_values,
               min(r.motor_current) AS motor_current_min, max(r.motor_current) AS motor_current_max, sum(r.motor_current) FILTER (WHERE abs(r.motor_current) < 1e100) AS motor_current_sum,
               count(*) FILTER (WHERE abs(r.motor_current) < 1e100) AS motor_current_count,
               array_agg(r.motor_current ORDER BY r."timestamp") FILTER (WHERE r.motor_current IS NOT NULL) AS motor_current_values,
               min(r.motor_temp) AS motor_temp_min, max(r.motor_temp) AS motor_temp_max, sum(r.motor_temp) FILTER (WHERE abs(r.motor_temp) < 1e100) AS motor_temp_sum,
               count(*) FILTER (WHERE abs(r.motor_temp) < 1e100) AS motor_temp_count,
               array_agg(r.motor_temp ORDER BY r."timestamp") FILTER (WHERE r.motor_temp IS NOT NULL) AS motor_temp_values,
               min(r.vibration) AS vibration_min, max(r.vibration) AS vibration_max, sum(r.vibration) FILTER (WHERE abs(r.vibration) < 1e100) AS vibration_sum,
               count(*) FILTER (WHERE abs(r.vibration) < 1e100) AS vibration_count,
               array_agg(r.vibration ORDER BY r."timestamp") FILTER (WHERE r.vibration IS NOT NULL) AS vibration_values,
               min(r.vsd_frequency) AS vsd_frequency_min, max(r.vsd_frequency) AS vsd_frequency_max, sum(r.vsd_frequency) FILTER (WHERE abs(r.vsd_frequency) < 1e100) AS vsd_frequency_sum,
               count(*) FILTER (WHERE abs(r.vsd_frequency) < 1e100) AS vsd_frequency_count,
               array_agg(r.vsd_frequency ORDER BY r."timestamp") FILTER (WHERE r.vsd_frequency IS NOT NULL) AS vsd_frequency_values,
               min(r.gor) AS gor_min, max(r.gor) AS gor_max, sum(r.gor) FILTER (WHERE abs(r.gor) < 1e100) AS gor_sum,
               count(*) FILTER (WHERE abs(r.gor) < 1e100) AS gor_count,
               array_agg(r.gor ORDER BY r."timestamp") FILTER (WHERE r.gor IS NOT NULL) AS gor_values,
               min(r.discharge_pressure) AS discharge_pressure_min, max(r.discharge_pressure) AS discharge_pressure_max, sum(r.discharge_pressure) FILTER (WHERE abs(r.discharge_pressure) < 1e100) AS discharge_pressure_sum,
               count(*) FILTER (WHERE abs(r.discharge_pressure) < 1e100) AS discharge_pressure_count,
               array_agg(r.discharge_pressure ORDER BY r."timestamp") FILTER (WHERE r.discharge_pressure IS NOT NULL) AS discharge_pressure_values,
               min(r.wellhead_pressure) AS wellhead_pressure_min, max(r.wellhead_pressure) AS wellhead_pressure_max, sum(r.wellhead_pressure) FILTER (WHERE abs(r.wellhead_pressure) < 1e100) AS wellhead_pressure_sum,
               count(*) FILTER (WHERE abs(r.wellhead_pressure) < 1e100) AS wellhead_pressure_count,
               array_agg(r.wellhead_pressure ORDER BY r."timestamp") FILTER (WHERE r.wellhead_pressure IS NOT NULL) AS wellhead_pressure_values,
               min(r.casing_pressure) AS casing_pressure_min, max(r.casing_pressure) AS casing_pressure_max, sum(r.casing_pressure) FILTER (WHERE abs(r.casing_pressure) < 1e100) AS casing_pressure_sum,
               count(*) FILTER (WHERE abs(r.casing_pressure) < 1e100) AS casing_pressure_count,
               array_agg(r.casing_pressure ORDER BY r."timestamp") FILTER (WHERE r.casing_pressure IS NOT NULL) AS casing_pressure_values,
               min(r.intake_temp) AS intake_temp_min, max(r.intake_temp) AS intake_temp_max, sum(r.intake_temp) FILTER (WHERE abs(r.intake_temp) < 1e100) AS intake_temp_sum,
               count(*) FILTER (WHERE abs(r.intake_temp) < 1e100) AS intake_temp_count,
               array_agg(r.intake_temp ORDER BY r."timestamp") FILTER (WHERE r.intake_temp IS NOT NULL) AS intake_temp_values,
               min(r.leakage_current) AS leakage_current_min, max(r.leakage_current) AS leakage_current_max, sum(r.leakage_current) FILTER (WHERE abs(r.leakage_current) < 1e100) AS leakage_current_sum,
               count(*) FILTER (WHERE abs(r.leakage_current) < 1e100) AS leakage_current_count,
               array_agg(r.leakage_current ORDER BY r."timestamp") FILTER (WHERE r.leakage_current IS NOT NULL) AS leakage_current_values,
               min(r.drive_voltage) AS drive_voltage_min, max(r.drive_voltage) AS drive_voltage_max, sum(r.drive_voltage) FILTER (WHERE abs(r.drive_voltage) < 1e100) AS drive_voltage_sum,
               count(*) FILTER (WHERE abs(r.drive_voltage) < 1e100) AS drive_voltage_count,
               array_agg(r.drive_voltage ORDER BY r."timestamp") FILTER (WHERE r.drive_voltage IS NOT NULL) AS drive_voltage_values,
               coalesce(extract(epoch FROM sum(least(r.runs_to, r.hour + INTERVAL '1 hour') - r."timestamp")
                                FILTER (WHERE r.runs_to IS NOT NULL)), 0) AS within,
               coalesce(extract(epoch FROM sum(r.runs_to - (r.hour + INTERVAL '1 hour'))
                                FILTER (WHERE r.runs_to > r.hour + INTERVAL '1 hour')), 0) AS beyond
        FROM reading r
        GROUP BY r.well_id, r.hour
    ),
    joined AS (
        SELECT g.*, CASE WHEN lag(g.hour) OVER hours = g.hour - INTERVAL '1 hour' THEN lag(g.beyond) OVER hours ELSE 0 END
                    AS carried
        FROM gathered g
        WINDOW hours AS (PARTITION BY g.well_id ORDER BY g.hour)
    )
    SELECT j.well_id, j.hour AS bucket, j.count,
           j.flow_rate_min, j.flow_rate_max, CASE WHEN abs(j.flow_rate_sum) < 1e-290 THEN 0 ELSE j.flow_rate_sum / nullif(j.flow_rate_count, 0)::double precision END AS flow_rate_mean, j.flow_rate_values[1] AS flow_rate_first, j.flow_rate_values[cardinality(j.flow_rate_values)] AS flow_rate_last, j.flow_rate_count,
           j.pip_min, j.pip_max, CASE WHEN abs(j.pip_sum) < 1e-290 THEN 0 ELSE j.pip_sum / nullif(j.pip_count, 0)::double precision END AS pip_mean, j.pip_values[1] AS pip_first, j.pip_values[cardinality(j.pip_values)] AS pip_last, j.pip_count,
           j.motor_current_min, j.motor_current_max, CASE WHEN abs(j.motor_current_sum) < 1e-290 THEN 0 ELSE j.motor_current_sum / nullif(j.motor_current_count, 0)::double precision END AS motor_current_mean, j.motor_current_values[1] AS motor_current_first, j.motor_current_values[cardinality(j.motor_current_values)] AS motor_current_last, j.motor_current_count,
           j.motor_temp_min, j.motor_temp_max, CASE WHEN abs(j.motor_temp_sum) < 1e-290 THEN 0 ELSE j.motor_temp_sum / nullif(j.motor_temp_count, 0)::double precision END AS motor_temp_mean, j.motor_temp_values[1] AS motor_temp_first, j.motor_temp_values[cardinality(j.motor_temp_values)] AS motor_temp_last, j.motor_temp_count,
           j.vibration_min, j.vibration_max, CASE WHEN abs(j.vibration_sum) < 1e-290 THEN 0 ELSE j.vibration_sum / nullif(j.vibration_count, 0)::double precision END AS vibration_mean, j.vibration_values[1] AS vibration_first, j.vibration_values[cardinality(j.vibration_values)] AS vibration_last, j.vibration_count,
           j.vsd_frequency_min, j.vsd_frequency_max, CASE WHEN abs(j.vsd_frequency_sum) < 1e-290 THEN 0 ELSE j.vsd_frequency_sum / nullif(j.vsd_frequency_count, 0)::double precision END AS vsd_frequency_mean, j.vsd_frequency_values[1] AS vsd_frequency_first, j.vsd_frequency_values[cardinality(j.vsd_frequency_values)] AS vsd_frequency_last, j.vsd_frequency_count,
           j.gor_min, j.gor_max, CASE WHEN abs(j.gor_sum) < 1e-290 THEN 0 ELSE j.gor_sum / nullif(j.gor_count, 0)::double precision END AS gor_mean, j.gor_values[1] AS gor_first, j.gor_values[cardinality(j.gor_values)] AS gor_last, j.gor_count,
           j.discharge_pressure_min, j.discharge_pressure_max, CASE WHEN abs(j.discharge_pressure_sum) < 1e-290 THEN 0 ELSE j.discharge_pressure_sum / nullif(j.discharge_pressure_count, 0)::double precision END AS discharge_pressure_mean, j.discharge_pressure_values[1] AS discharge_pressure_first, j.discharge_pressure_values[cardinality(j.discharge_pressure_values)] AS discharge_pressure_last, j.discharge_pressure_count,
           j.wellhead_pressure_min, j.wellhead_pressure_max, CASE WHEN abs(j.wellhead_pressure_sum) < 1e-290 THEN 0 ELSE j.wellhead_pressure_sum / nullif(j.wellhead_pressure_count, 0)::double precision END AS wellhead_pressure_mean, j.wellhead_pressure_values[1] AS wellhead_pressure_first, j.wellhead_pressure_values[cardinality(j.wellhead_pressure_values)] AS wellhead_pressure_last, j.wellhead_pressure_count,
           j.casing_pressure_min, j.casing_pressure_max, CASE WHEN abs(j.casing_pressure_sum) < 1e-290 THEN 0 ELSE j.casing_pressure_sum / nullif(j.casing_pressure_count, 0)::double precision END AS casing_pressure_mean, j.casing_pressure_values[1] AS casing_pressure_first, j.casing_pressure_values[cardinality(j.casing_pressure_values)] AS casing_pressure_last, j.casing_pressure_count,
           j.intake_temp_min, j.intake_temp_max, CASE WHEN abs(j.intake_temp_sum) < 1e-290 THEN 0 ELSE j.intake_temp_sum / nullif(j.intake_temp_count, 0)::double precision END AS intake_temp_mean, j.intake_temp_values[1] AS intake_temp_first, j.intake_temp_values[cardinality(j.intake_temp_values)] AS intake_temp_last, j.intake_temp_count,
           j.leakage_current_min, j.leakage_current_max, CASE WHEN abs(j.leakage_current_sum) < 1e-290 THEN 0 ELSE j.leakage_current_sum / nullif(j.leakage_current_count, 0)::double precision END AS leakage_current_mean, j.leakage_current_values[1] AS leakage_current_first, j.leakage_current_values[cardinality(j.leakage_current_values)] AS leakage_current_last, j.leakage_current_count,
           j.drive_voltage_min, j.drive_voltage_max, CASE WHEN abs(j.drive_voltage_sum) < 1e-290 THEN 0 ELSE j.drive_voltage_sum / nullif(j.drive_voltage_count, 0)::double precision END AS drive_voltage_mean, j.drive_voltage_values[1] AS drive_voltage_first, j.drive_voltage_values[cardinality(j.drive_voltage_values)] AS drive_voltage_last, j.drive_voltage_count,
           (j.within + j.carried)::double precision AS running_seconds
    FROM joined j
    WHERE j.hour >= since;
END;

-- For views when nothing was kept for two days: not merged into the question, so that its readings are planned only if needed.
CREATE FUNCTION aggregated_hours_apart(since timestamptz) RETURNS SETOF aggregate_hours
LANGUAGE sql STABLE ROWS 1000 SET jit = off
BEGIN ATOMIC
    SELECT h.* FROM aggregated_hours(since, 'infinity') AS h;
END;

-- Each hour once: kept, or gathered from readings of the last two days, or from all readings since.
CREATE OR REPLACE VIEW aggregate_hours_now AS
SELECT kept.*
FROM aggregate_hours kept
UNION ALL
SELECT recent.*
FROM (
    WITH reading AS (
        SELECT t.*, date_bin(INTERVAL '1 hour', t."timestamp", TIMESTAMPTZ '2000-01-01 00:00:00Z') AS hour,
               CASE WHEN (t.vsd_frequency IS NOT NULL OR t.motor_current IS NOT NULL)
                     AND coalesce(t.vsd_frequency > 5, true) AND coalesce(t.motor_current > 1, true)
                    THEN least(lead(t."timestamp") OVER (PARTITION BY t.well_id ORDER BY date_bin(INTERVAL '1 hour', t."timestamp", TIMESTAMPTZ '2000-01-01 00:00:00Z'), t."timestamp"),
                               t."timestamp" + INTERVAL '15 minutes') END AS runs_to
        FROM esp_telemetry t
        WHERE t."timestamp" >= now() - INTERVAL '2 days'
          AND t."timestamp" >= (SELECT hours_to - INTERVAL '15 minutes' FROM aggregate_state) AND isfinite(t."timestamp")
    ),
    gathered AS (
        SELECT r.well_id, r.hour, count(*) AS count,
               min(r.flow_rate) AS flow_rate_min, max(r.flow_rate) AS flow_rate_max, sum(r.flow_rate) FILTER (WHERE abs(r.flow_rate) < 1e100) AS flow_rate_sum,
               count(*) FILTER (WHERE abs(r.flow_rate) < 1e100) AS flow_rate_count,
               array_agg(r.flow_rate ORDER BY r."timestamp") FILTER (WHERE r.flow_rate IS NOT NULL) AS flow_rate_values,
               min(r.pip) AS pip_min, max(r.pip) AS pip_max, sum(r.pip) FILTER (WHERE abs(r.pip) < 1e100) AS pip_sum,
               count(*) FILTER (WHERE abs(r.pip) < 1e100) AS pip_count,
               array_agg(r.pip ORDER BY r."timestamp") FILTER (WHERE r.pip IS NOT NULL) AS pip_values,
               min(r.motor_current) AS motor_current_min, max(r.motor_current) AS motor_current_max, sum(r.motor_current) FILTER (WHERE abs(r.motor_current) < 1e100) AS motor_current_sum,
               count(*) FILTER (WHERE abs(r.motor_current) < 1e100) AS motor_current_count,
               array_agg(r.motor_current ORDER BY r."timestamp") FILTER (WHERE r.motor_current IS NOT NULL) AS motor_current_values,
               min(r.motor_temp) AS motor_temp_min, max(r.motor_temp) AS motor_temp_max, sum(r.motor_temp) FILTER (WHERE abs(r.motor_temp) < 1e100) AS motor_temp_sum,
               count(*) FILTER (WHERE abs(r.motor_temp) < 1e100) AS motor_temp_count,
               array_agg(r.motor_temp ORDER BY r."timestamp") FILTER (WHERE r.motor_temp IS NOT NULL) AS motor_temp_values,
               min(r.vibration) AS vibration_min, max(r.vibration) AS vibration_max, sum(r.vibration) FILTER (WHERE abs(r.vibration) < 1e100) AS vibration_sum,
               count(*) FILTER (WHERE abs(r.vibration) < 1e100) AS vibration_count,
               array_agg(r.vibration ORDER BY r."timestamp") FILTER (WHERE r.vibration IS NOT NULL) AS vibration_values,
               min(r.vsd_frequency) AS vsd_frequency_min, max(r.vsd_frequency) AS vsd_frequency_max, sum(r.vsd_frequency) FILTER (WHERE abs(r.vsd_frequency) < 1e100) AS vsd_frequency_sum,
               count(*) FILTER (WHERE abs(r.vsd_frequency) < 1e100) AS vsd_frequency_count,
               array_agg(r.vsd_frequency ORDER BY r."timestamp") FILTER (WHERE r.vsd_frequency IS NOT NULL) AS vsd_frequency_values,
               min(r.gor) AS gor_min, max(r.gor) AS gor_max, sum(r.gor) FILTER (WHERE abs(r.gor) < 1e100) AS gor_sum,
               count(*) FILTER (WHERE abs(r.gor) < 1e100) AS gor_count,
               array_agg(r.gor ORDER BY r."timestamp") FILTER (WHERE r.gor IS NOT NULL) AS gor_values,
               min(r.discharge_pressure) AS discharge_pressure_min, max(r.discharge_pressure) AS discharge_pressure_max, sum(r.discharge_pressure) FILTER (WHERE abs(r.discharge_pressure) < 1e100) AS discharge_pressure_sum,
               count(*) FILTER (WHERE abs(r.discharge_pressure) < 1e100) AS discharge_pressure_count,
               array_agg(r.discharge_pressure ORDER BY r."timestamp") FILTER (WHERE r.discharge_pressure IS NOT NULL) AS discharge_pressure_values,
               min(r.wellhead_pressure) AS wellhead_pressure_min, max(r.wellhead_pressure) AS wellhead_pressure_max, sum(r.wellhead_pressure) FILTER (WHERE abs(r.wellhead_pressure) < 1e100) AS wellhead_pressure_sum,
               count(*) FILTER (WHERE abs(r.wellhead_pressure) < 1e100) AS wellhead_pressure_count,
               array_agg(r.wellhead_pressure ORDER BY r."timestamp") FILTER (WHERE r.wellhead_pressure IS NOT NULL) AS wellhead_pressure_values,
               min(r.casing_pressure) AS casing_pressure_min, max(r.casing_pressure) AS casing_pressure_max, sum(r.casing_pressure) FILTER (WHERE abs(r.casing_pressure) < 1e100) AS casing_pressure_sum,
               count(*) FILTER (WHERE abs(r.casing_pressure) < 1e100) AS casing_pressure_count,
               array_agg(r.casing_pressure ORDER BY r."timestamp") FILTER (WHERE r.casing_pressure IS NOT NULL) AS casing_pressure_values,
               min(r.intake_temp) AS intake_temp_min, max(r.intake_temp) AS intake_temp_max, sum(r.intake_temp) FILTER (WHERE abs(r.intake_temp) < 1e100) AS intake_temp_sum,
               count(*) FILTER (WHERE abs(r.intake_temp) < 1e100) AS intake_temp_count,
               array_agg(r.intake_temp ORDER BY r."timestamp") FILTER (WHERE r.intake_temp IS NOT NULL) AS intake_temp_values,
               min(r.leakage_current) AS leakage_current_min, max(r.leakage_current) AS leakage_current_max, sum(r.leakage_current) FILTER (WHERE abs(r.leakage_current) < 1e100) AS leakage_current_sum,
               count(*) FILTER (WHERE abs(r.leakage_current) < 1e100) AS leakage_current_count,
               array_agg(r.leakage_current ORDER BY r."timestamp") FILTER (WHERE r.leakage_current IS NOT NULL) AS leakage_current_values,
               min(r.drive_voltage) AS drive_voltage_min, max(r.drive_voltage) AS drive_voltage_max, sum(r.drive_voltage) FILTER (WHERE abs(r.drive_voltage) < 1e100) AS drive_voltage_sum,
               count(*) FILTER (WHERE abs(r.drive_voltage) < 1e100) AS drive_voltage_count,
               array_agg(r.drive_voltage ORDER BY r."timestamp") FILTER (WHERE r.drive_voltage IS NOT NULL) AS drive_voltage_values,
               coalesce(extract(epoch FROM sum(least(r.runs_to, r.hour + INTERVAL '1 hour') - r."timestamp")
                                FILTER (WHERE r.runs_to IS NOT NULL)), 0) AS within,
               coalesce(extract(epoch FROM sum(r.runs_to - (r.hour + INTERVAL '1 hour'))
                                FILTER (WHERE r.runs_to > r.hour + INTERVAL '1 hour')), 0) AS beyond
        FROM reading r
        GROUP BY r.well_id, r.hour
    ),
    joined AS (
        SELECT g.*, CASE WHEN lag(g.hour) OVER hours = g.hour - INTERVAL '1 hour' THEN lag(g.beyond) OVER hours ELSE 0 END
                    AS carried
        FROM gathered g
        WINDOW hours AS (PARTITION BY g.well_id ORDER BY g.hour)
    )
    SELECT j.well_id, j.hour AS bucket, j.count,
           j.flow_rate_min, j.flow_rate_max, CASE WHEN abs(j.flow_rate_sum) < 1e-290 THEN 0 ELSE j.flow_rate_sum / nullif(j.flow_rate_count, 0)::double precision END AS flow_rate_mean, j.flow_rate_values[1] AS flow_rate_first, j.flow_rate_values[cardinality(j.flow_rate_values)] AS flow_rate_last, j.flow_rate_count,
           j.pip_min, j.pip_max, CASE WHEN abs(j.pip_sum) < 1e-290 THEN 0 ELSE j.pip_sum / nullif(j.pip_count, 0)::double precision END AS pip_mean, j.pip_values[1] AS pip_first, j.pip_values[cardinality(j.pip_values)] AS pip_last, j.pip_count,
           j.motor_current_min, j.motor_current_max, CASE WHEN abs(j.motor_current_sum) < 1e-290 THEN 0 ELSE j.motor_current_sum / nullif(j.motor_current_count, 0)::double precision END AS motor_current_mean, j.motor_current_values[1] AS motor_current_first, j.motor_current_values[cardinality(j.motor_current_values)] AS motor_current_last, j.motor_current_count,
           j.motor_temp_min, j.motor_temp_max, CASE WHEN abs(j.motor_temp_sum) < 1e-290 THEN 0 ELSE j.motor_temp_sum / nullif(j.motor_temp_count, 0)::double precision END AS motor_temp_mean, j.motor_temp_values[1] AS motor_temp_first, j.motor_temp_values[cardinality(j.motor_temp_values)] AS motor_temp_last, j.motor_temp_count,
           j.vibration_min, j.vibration_max, CASE WHEN abs(j.vibration_sum) < 1e-290 THEN 0 ELSE j.vibration_sum / nullif(j.vibration_count, 0)::double precision END AS vibration_mean, j.vibration_values[1] AS vibration_first, j.vibration_values[cardinality(j.vibration_values)] AS vibration_last, j.vibration_count,
           j.vsd_frequency_min, j.vsd_frequency_max, CASE WHEN abs(j.vsd_frequency_sum) < 1e-290 THEN 0 ELSE j.vsd_frequency_sum / nullif(j.vsd_frequency_count, 0)::double precision END AS vsd_frequency_mean, j.vsd_frequency_values[1] AS vsd_frequency_first, j.vsd_frequency_values[cardinality(j.vsd_frequency_values)] AS vsd_frequency_last, j.vsd_frequency_count,
           j.gor_min, j.gor_max, CASE WHEN abs(j.gor_sum) < 1e-290 THEN 0 ELSE j.gor_sum / nullif(j.gor_count, 0)::double precision END AS gor_mean, j.gor_values[1] AS gor_first, j.gor_values[cardinality(j.gor_values)] AS gor_last, j.gor_count,
           j.discharge_pressure_min, j.discharge_pressure_max, CASE WHEN abs(j.discharge_pressure_sum) < 1e-290 THEN 0 ELSE j.discharge_pressure_sum / nullif(j.discharge_pressure_count, 0)::double precision END AS discharge_pressure_mean, j.discharge_pressure_values[1] AS discharge_pressure_first, j.discharge_pressure_values[cardinality(j.discharge_pressure_values)] AS discharge_pressure_last, j.discharge_pressure_count,
           j.wellhead_pressure_min, j.wellhead_pressure_max, CASE WHEN abs(j.wellhead_pressure_sum) < 1e-290 THEN 0 ELSE j.wellhead_pressure_sum / nullif(j.wellhead_pressure_count, 0)::double precision END AS wellhead_pressure_mean, j.wellhead_pressure_values[1] AS wellhead_pressure_first, j.wellhead_pressure_values[cardinality(j.wellhead_pressure_values)] AS wellhead_pressure_last, j.wellhead_pressure_count,
           j.casing_pressure_min, j.casing_pressure_max, CASE WHEN abs(j.casing_pressure_sum) < 1e-290 THEN 0 ELSE j.casing_pressure_sum / nullif(j.casing_pressure_count, 0)::double precision END AS casing_pressure_mean, j.casing_pressure_values[1] AS casing_pressure_first, j.casing_pressure_values[cardinality(j.casing_pressure_values)] AS casing_pressure_last, j.casing_pressure_count,
           j.intake_temp_min, j.intake_temp_max, CASE WHEN abs(j.intake_temp_sum) < 1e-290 THEN 0 ELSE j.intake_temp_sum / nullif(j.intake_temp_count, 0)::double precision END AS intake_temp_mean, j.intake_temp_values[1] AS intake_temp_first, j.intake_temp_values[cardinality(j.intake_temp_values)] AS intake_temp_last, j.intake_temp_count,
           j.leakage_current_min, j.leakage_current_max, CASE WHEN abs(j.leakage_current_sum) < 1e-290 THEN 0 ELSE j.leakage_current_sum / nullif(j.leakage_current_count, 0)::double precision END AS leakage_current_mean, j.leakage_current_values[1] AS leakage_current_first, j.leakage_current_values[cardinality(j.leakage_current_values)] AS leakage_current_last, j.leakage_current_count,
           j.drive_voltage_min, j.drive_voltage_max, CASE WHEN abs(j.drive_voltage_sum) < 1e-290 THEN 0 ELSE j.drive_voltage_sum / nullif(j.drive_voltage_count, 0)::double precision END AS drive_voltage_mean, j.drive_voltage_values[1] AS drive_voltage_first, j.drive_voltage_values[cardinality(j.drive_voltage_values)] AS drive_voltage_last, j.drive_voltage_count,
           (j.within + j.carried)::double precision AS running_seconds
    FROM joined j
    WHERE j.hour >= (SELECT hours_to FROM aggregate_state) AND (SELECT hours_to FROM aggregate_state) >= now() - INTERVAL '47 hours'
) AS recent
UNION ALL
SELECT apart.*
FROM aggregate_state s
CROSS JOIN LATERAL aggregated_hours_apart(s.hours_to) AS apart
WHERE s.hours_to < now() - INTERVAL '47 hours';

CREATE OR REPLACE VIEW esp_telemetry_daily AS
WITH day AS (
    SELECT d.*
    FROM aggregate_days d
    WHERE d.bucket < (SELECT days_to FROM aggregate_state)
    UNION ALL
    SELECT h.well_id, date_bin(INTERVAL '1 day', h.bucket, TIMESTAMPTZ '2000-01-01 00:00:00Z') AS bucket, sum(h.count)::bigint AS count,
           min(h.flow_rate_min) AS flow_rate_min, max(h.flow_rate_max) AS flow_rate_max,
           sum(h.flow_rate_mean * h.flow_rate_count) / nullif(sum(h.flow_rate_count), 0)::double precision AS flow_rate_mean,
           (array_agg(h.flow_rate_first ORDER BY h.bucket) FILTER (WHERE h.flow_rate_first IS NOT NULL))[1] AS flow_rate_first,
           (array_agg(h.flow_rate_last ORDER BY h.bucket DESC) FILTER (WHERE h.flow_rate_last IS NOT NULL))[1] AS flow_rate_last,
           sum(h.flow_rate_count)::bigint AS flow_rate_count,
           min(h.pip_min) AS pip_min, max(h.pip_max) AS pip_max,
           sum(h.pip_mean * h.pip_count) / nullif(sum(h.pip_count), 0)::double precision AS pip_mean,
           (array_agg(h.pip_first ORDER BY h.bucket) FILTER (WHERE h.pip_first IS NOT NULL))[1] AS pip_first,
           (array_agg(h.pip_last ORDER BY h.bucket DESC) FILTER (WHERE h.pip_last IS NOT NULL))[1] AS pip_last,
           sum(h.pip_count)::bigint AS pip_count,
           min(h.motor_current_min) AS motor_current_min, max(h.motor_current_max) AS motor_current_max,
           sum(h.motor_current_mean * h.motor_current_count) / nullif(sum(h.motor_current_count), 0)::double precision AS motor_current_mean,
           (array_agg(h.motor_current_first ORDER BY h.bucket) FILTER (WHERE h.motor_current_first IS NOT NULL))[1] AS motor_current_first,
           (array_agg(h.motor_current_last ORDER BY h.bucket DESC) FILTER (WHERE h.motor_current_last IS NOT NULL))[1] AS motor_current_last,
           sum(h.motor_current_count)::bigint AS motor_current_count,
           min(h.motor_temp_min) AS motor_temp_min, max(h.motor_temp_max) AS motor_temp_max,
           sum(h.motor_temp_mean * h.motor_temp_count) / nullif(sum(h.motor_temp_count), 0)::double precision AS motor_temp_mean,
           (array_agg(h.motor_temp_first ORDER BY h.bucket) FILTER (WHERE h.motor_temp_first IS NOT NULL))[1] AS motor_temp_first,
           (array_agg(h.motor_temp_last ORDER BY h.bucket DESC) FILTER (WHERE h.motor_temp_last IS NOT NULL))[1] AS motor_temp_last,
           sum(h.motor_temp_count)::bigint AS motor_temp_count,
           min(h.vibration_min) AS vibration_min, max(h.vibration_max) AS vibration_max,
           sum(h.vibration_mean * h.vibration_count) / nullif(sum(h.vibration_count), 0)::double precision AS vibration_mean,
           (array_agg(h.vibration_first ORDER BY h.bucket) FILTER (WHERE h.vibration_first IS NOT NULL))[1] AS vibration_first,
           (array_agg(h.vibration_last ORDER BY h.bucket DESC) FILTER (WHERE h.vibration_last IS NOT NULL))[1] AS vibration_last,
           sum(h.vibration_count)::bigint AS vibration_count,
           min(h.vsd_frequency_min) AS vsd_frequency_min, max(h.vsd_frequency_max) AS vsd_frequency_max,
           sum(h.vsd_frequency_mean * h.vsd_frequency_count) / nullif(sum(h.vsd_frequency_count), 0)::double precision AS vsd_frequency_mean,
           (array_agg(h.vsd_frequency_first ORDER BY h.bucket) FILTER (WHERE h.vsd_frequency_first IS NOT NULL))[1] AS vsd_frequency_first,
           (array_agg(h.vsd_frequency_last ORDER BY h.bucket DESC) FILTER (WHERE h.vsd_frequency_last IS NOT NULL))[1] AS vsd_frequency_last,
           sum(h.vsd_frequency_count)::bigint AS vsd_frequency_count,
           min(h.gor_min) AS gor_min, max(h.gor_max) AS gor_max,
           sum(h.gor_mean * h.gor_count) / nullif(sum(h.gor_count), 0)::double precision AS gor_mean,
           (array_agg(h.gor_first ORDER BY h.bucket) FILTER (WHERE h.gor_first IS NOT NULL))[1] AS gor_first,
           (array_agg(h.gor_last ORDER BY h.bucket DESC) FILTER (WHERE h.gor_last IS NOT NULL))[1] AS gor_last,
           sum(h.gor_count)::bigint AS gor_count,
           min(h.discharge_pressure_min) AS discharge_pressure_min, max(h.discharge_pressure_max) AS discharge_pressure_max,
           sum(h.discharge_pressure_mean * h.discharge_pressure_count) / nullif(sum(h.discharge_pressure_count), 0)::double precision AS discharge_pressure_mean,
           (array_agg(h.discharge_pressure_first ORDER BY h.bucket) FILTER (WHERE h.discharge_pressure_first IS NOT NULL))[1] AS discharge_pressure_first,
           (array_agg(h.discharge_pressure_last ORDER BY h.bucket DESC) FILTER (WHERE h.discharge_pressure_last IS NOT NULL))[1] AS discharge_pressure_last,
           sum(h.discharge_pressure_count)::bigint AS discharge_pressure_count,
           min(h.wellhead_pressure_min) AS wellhead_pressure_min, max(h.wellhead_pressure_max) AS wellhead_pressure_max,
           sum(h.wellhead_pressure_mean * h.wellhead_pressure_count) / nullif(sum(h.wellhead_pressure_count), 0)::double precision AS wellhead_pressure_mean,
           (array_agg(h.wellhead_pressure_first ORDER BY h.bucket) FILTER (WHERE h.wellhead_pressure_first IS NOT NULL))[1] AS wellhead_pressure_first,
           (array_agg(h.wellhead_pressure_last ORDER BY h.bucket DESC) FILTER (WHERE h.wellhead_pressure_last IS NOT NULL))[1] AS wellhead_pressure_last,
           sum(h.wellhead_pressure_count)::bigint AS wellhead_pressure_count,
           min(h.casing_pressure_min) AS casing_pressure_min, max(h.casing_pressure_max) AS casing_pressure_max,
           sum(h.casing_pressure_mean * h.casing_pressure_count) / nullif(sum(h.casing_pressure_count), 0)::double precision AS casing_pressure_mean,
           (array_agg(h.casing_pressure_first ORDER BY h.bucket) FILTER (WHERE h.casing_pressure_first IS NOT NULL))[1] AS casing_pressure_first,
           (array_agg(h.casing_pressure_last ORDER BY h.bucket DESC) FILTER (WHERE h.casing_pressure_last IS NOT NULL))[1] AS casing_pressure_last,
           sum(h.casing_pressure_count)::bigint AS casing_pressure_count,
           min(h.intake_temp_min) AS intake_temp_min, max(h.intake_temp_max) AS intake_temp_max,
           sum(h.intake_temp_mean * h.intake_temp_count) / nullif(sum(h.intake_temp_count), 0)::double precision AS intake_temp_mean,
           (array_agg(h.intake_temp_first ORDER BY h.bucket) FILTER (WHERE h.intake_temp_first IS NOT NULL))[1] AS intake_temp_first,
           (array_agg(h.intake_temp_last ORDER BY h.bucket DESC) FILTER (WHERE h.intake_temp_last IS NOT NULL))[1] AS intake_temp_last,
           sum(h.intake_temp_count)::bigint AS intake_temp_count,
           min(h.leakage_current_min) AS leakage_current_min, max(h.leakage_current_max) AS leakage_current_max,
           sum(h.leakage_current_mean * h.leakage_current_count) / nullif(sum(h.leakage_current_count), 0)::double precision AS leakage_current_mean,
           (array_agg(h.leakage_current_first ORDER BY h.bucket) FILTER (WHERE h.leakage_current_first IS NOT NULL))[1] AS leakage_current_first,
           (array_agg(h.leakage_current_last ORDER BY h.bucket DESC) FILTER (WHERE h.leakage_current_last IS NOT NULL))[1] AS leakage_current_last,
           sum(h.leakage_current_count)::bigint AS leakage_current_count,
           min(h.drive_voltage_min) AS drive_voltage_min, max(h.drive_voltage_max) AS drive_voltage_max,
           sum(h.drive_voltage_mean * h.drive_voltage_count) / nullif(sum(h.drive_voltage_count), 0)::double precision AS drive_voltage_mean,
           (array_agg(h.drive_voltage_first ORDER BY h.bucket) FILTER (WHERE h.drive_voltage_first IS NOT NULL))[1] AS drive_voltage_first,
           (array_agg(h.drive_voltage_last ORDER BY h.bucket DESC) FILTER (WHERE h.drive_voltage_last IS NOT NULL))[1] AS drive_voltage_last,
           sum(h.drive_voltage_count)::bigint AS drive_voltage_count,
           sum(h.running_seconds) AS running_seconds
    FROM aggregate_hours_now AS h
    WHERE h.bucket >= (SELECT days_to FROM aggregate_state)
    GROUP BY h.well_id, 2
)
SELECT d.well_id, d.bucket, d.count,
       d.flow_rate_min, d.flow_rate_max, d.flow_rate_mean, d.flow_rate_first, d.flow_rate_last,
       d.pip_min, d.pip_max, d.pip_mean, d.pip_first, d.pip_last,
       d.motor_current_min, d.motor_current_max, d.motor_current_mean, d.motor_current_first, d.motor_current_last,
       d.motor_temp_min, d.motor_temp_max, d.motor_temp_mean, d.motor_temp_first, d.motor_temp_last,
       d.vibration_min, d.vibration_max, d.vibration_mean, d.vibration_first, d.vibration_last,
       d.vsd_frequency_min, d.vsd_frequency_max, d.vsd_frequency_mean, d.vsd_frequency_first, d.vsd_frequency_last,
       d.gor_min, d.gor_max, d.gor_mean, d.gor_first, d.gor_last,
       d.discharge_pressure_min, d.discharge_pressure_max, d.discharge_pressure_mean, d.discharge_pressure_first, d.discharge_pressure_last,
       d.wellhead_pressure_min, d.wellhead_pressure_max, d.wellhead_pressure_mean, d.wellhead_pressure_first, d.wellhead_pressure_last,
       d.casing_pressure_min, d.casing_pressure_max, d.casing_pressure_mean, d.casing_pressure_first, d.casing_pressure_last,
       d.intake_temp_min, d.intake_temp_max, d.intake_temp_mean, d.intake_temp_first, d.intake_temp_last,
       d.leakage_current_min, d.leakage_current_max, d.leakage_current_mean, d.leakage_current_first, d.leakage_current_last,
       d.drive_voltage_min, d.drive_voltage_max, d.drive_voltage_mean, d.drive_voltage_first, d.drive_voltage_last,
       d.running_seconds,
       coalesce(kept.alarm_critical_seconds, 0) + coalesce(later.alarm_critical_seconds, 0) AS alarm_critical_seconds,
       coalesce(kept.alarm_high_seconds, 0) + coalesce(later.alarm_high_seconds, 0) AS alarm_high_seconds,
       coalesce(kept.alarm_medium_seconds, 0) + coalesce(later.alarm_medium_seconds, 0) AS alarm_medium_seconds,
       coalesce(kept.alarm_low_seconds, 0) + coalesce(later.alarm_low_seconds, 0) AS alarm_low_seconds,
       coalesce(kept.alarm_info_seconds, 0) + coalesce(later.alarm_info_seconds, 0) AS alarm_info_seconds
FROM day d
LEFT JOIN LATERAL (
    SELECT sum(a.alarm_critical_seconds) AS alarm_critical_seconds,
           sum(a.alarm_high_seconds) AS alarm_high_seconds,
           sum(a.alarm_medium_seconds) AS alarm_medium_seconds,
           sum(a.alarm_low_seconds) AS alarm_low_seconds,
           sum(a.alarm_info_seconds) AS alarm_info_seconds
    FROM aggregate_alarm_hours a
    WHERE a.well_id = d.well_id AND a.bucket >= d.bucket AND a.bucket < d.bucket + INTERVAL '1 day'
      AND a.bucket < (SELECT alarms_to FROM aggregate_state)
) AS kept ON true
LEFT JOIN LATERAL (
    SELECT sum(live.alarm_critical_seconds) AS alarm_critical_seconds,
           sum(live.alarm_high_seconds) AS alarm_high_seconds,
           sum(live.alarm_medium_seconds) AS alarm_medium_seconds,
           sum(live.alarm_low_seconds) AS alarm_low_seconds,
           sum(live.alarm_info_seconds) AS alarm_info_seconds
    FROM aggregated_alarm_hours((SELECT alarms_to FROM aggregate_state), 'infinity') AS live
    WHERE live.well_id = d.well_id AND live.bucket >= d.bucket AND live.bucket < d.bucket + INTERVAL '1 day'
      AND d.bucket + INTERVAL '1 day' > (SELECT alarms_to FROM aggregate_state)
) AS later ON true;

-- Hours of the whole fleet. Before fleet_to they are kept; later ones are gathered from the hours of its wells.
ALTER TABLE aggregate_state ADD COLUMN fleet_to timestamptz NOT NULL DEFAULT '-infinity';

CREATE TABLE aggregate_fleet_hours (
    bucket timestamptz PRIMARY KEY,
    wells bigint NOT NULL,
    count bigint NOT NULL,
    flow_rate_min double precision, flow_rate_max double precision, flow_rate_mean double precision, flow_rate_count bigint NOT NULL,
    pip_min double precision, pip_max double precision, pip_mean double precision, pip_count bigint NOT NULL,
    motor_current_min double precision, motor_current_max double precision, motor_current_mean double precision, motor_current_count bigint NOT NULL,
    motor_temp_min double precision, motor_temp_max double precision, motor_temp_mean double precision, motor_temp_count bigint NOT NULL,
    vibration_min double precision, vibration_max double precision, vibration_mean double precision, vibration_count bigint NOT NULL,
    vsd_frequency_min double precision, vsd_frequency_max double precision, vsd_frequency_mean double precision, vsd_frequency_count bigint NOT NULL,
    gor_min double precision, gor_max double precision, gor_mean double precision, gor_count bigint NOT NULL,
    discharge_pressure_min double precision, discharge_pressure_max double precision, discharge_pressure_mean double precision, discharge_pressure_count bigint NOT NULL,
    wellhead_pressure_min double precision, wellhead_pressure_max double precision, wellhead_pressure_mean double precision, wellhead_pressure_count bigint NOT NULL,
    casing_pressure_min double precision, casing_pressure_max double precision, casing_pressure_mean double precision, casing_pressure_count bigint NOT NULL,
    intake_temp_min double precision, intake_temp_max double precision, intake_temp_mean double precision, intake_temp_count bigint NOT NULL,
    leakage_current_min double precision, leakage_current_max double precision, leakage_current_mean double precision, leakage_current_count bigint NOT NULL,
    drive_voltage_min double precision, drive_voltage_max double precision, drive_voltage_mean double precision, drive_voltage_count bigint NOT NULL,
    running_seconds double precision NOT NULL
);

-- Full hours of the fleet, from the hours of its wells that are kept.
CREATE FUNCTION aggregated_fleet_hours(since timestamptz, until timestamptz) RETURNS SETOF aggregate_fleet_hours
LANGUAGE sql STABLE ROWS 24
BEGIN ATOMIC
    SELECT h.bucket, count(*), sum(h.count)::bigint,
       min(h.flow_rate_min) AS flow_rate_min, max(h.flow_rate_max) AS flow_rate_max,
       sum(h.flow_rate_mean * h.flow_rate_count) / nullif(sum(h.flow_rate_count), 0)::double precision AS flow_rate_mean, sum(h.flow_rate_count)::bigint AS flow_rate_count,
       min(h.pip_min) AS pip_min, max(h.pip_max) AS pip_max,
       sum(h.pip_mean * h.pip_count) / nullif(sum(h.pip_count), 0)::double precision AS pip_mean, sum(h.pip_count)::bigint AS pip_count,
       min(h.motor_current_min) AS motor_current_min, max(h.motor_current_max) AS motor_current_max,
       sum(h.motor_current_mean * h.motor_current_count) / nullif(sum(h.motor_current_count), 0)::double precision AS motor_current_mean, sum(h.motor_current_count)::bigint AS motor_current_count,
       min(h.motor_temp_min) AS motor_temp_min, max(h.motor_temp_max) AS motor_temp_max,
       sum(h.motor_temp_mean * h.motor_temp_count) / nullif(sum(h.motor_temp_count), 0)::double precision AS motor_temp_mean, sum(h.motor_temp_count)::bigint AS motor_temp_count,
       min(h.vibration_min) AS vibration_min, max(h.vibration_max) AS vibration_max,
       sum(h.vibration_mean * h.vibration_count) / nullif(sum(h.vibration_count), 0)::double precision AS vibration_mean, sum(h.vibration_count)::bigint AS vibration_count,
       min(h.vsd_frequency_min) AS vsd_frequency_min, max(h.vsd_frequency_max) AS vsd_frequency_max,
       sum(h.vsd_frequency_mean * h.vsd_frequency_count) / nullif(sum(h.vsd_frequency_count), 0)::double precision AS vsd_frequency_mean, sum(h.vsd_frequency_count)::bigint AS vsd_frequency_count,
       min(h.gor_min) AS gor_min, max(h.gor_max) AS gor_max,
       sum(h.gor_mean * h.gor_count) / nullif(sum(h.gor_count), 0)::double precision AS gor_mean, sum(h.gor_count)::bigint AS gor_count,
       min(h.discharge_pressure_min) AS discharge_pressure_min, max(h.discharge_pressure_max) AS discharge_pressure_max,
       sum(h.discharge_pressure_mean * h.discharge_pressure_count) / nullif(sum(h.discharge_pressure_count), 0)::double precision AS discharge_pressure_mean, sum(h.discharge_pressure_count)::bigint AS discharge_pressure_count,
       min(h.wellhead_pressure_min) AS wellhead_pressure_min, max(h.wellhead_pressure_max) AS wellhead_pressure_max,
       sum(h.wellhead_pressure_mean * h.wellhead_pressure_count) / nullif(sum(h.wellhead_pressure_count), 0)::double precision AS wellhead_pressure_mean, sum(h.wellhead_pressure_count)::bigint AS wellhead_pressure_count,
       min(h.casing_pressure_min) AS casing_pressure_min, max(h.casing_pressure_max) AS casing_pressure_max,
       sum(h.casing_pressure_mean * h.casing_pressure_count) / nullif(sum(h.casing_pressure_count), 0)::double precision AS casing_pressure_mean, sum(h.casing_pressure_count)::bigint AS casing_pressure_count,
       min(h.intake_temp_min) AS intake_temp_min, max(h.intake_temp_max) AS intake_temp_max,
       sum(h.intake_temp_mean * h.intake_temp_count) / nullif(sum(h.intake_temp_count), 0)::double precision AS intake_temp_mean, sum(h.intake_temp_count)::bigint AS intake_temp_count,
       min(h.leakage_current_min) AS leakage_current_min, max(h.leakage_current_max) AS leakage_current_max,
       sum(h.leakage_current_mean * h.leakage_current_count) / nullif(sum(h.leakage_current_count), 0)::double precision AS leakage_current_mean, sum(h.leakage_current_count)::bigint AS leakage_current_count,
       min(h.drive_voltage_min) AS drive_voltage_min, max(h.drive_voltage_max) AS drive_voltage_max,
       sum(h.drive_voltage_mean * h.drive_voltage_count) / nullif(sum(h.drive_voltage_count), 0)::double precision AS drive_voltage_mean, sum(h.drive_voltage_count)::bigint AS drive_voltage_count,
       sum(h.running_seconds)
    FROM aggregate_hours h
    WHERE h.bucket >= since AND h.bucket < until
    GROUP BY h.bucket;
END;

CREATE VIEW aggregate_fleet_hours_now AS
SELECT kept.* FROM aggregate_fleet_hours kept
UNION ALL
SELECT h.bucket, count(*) AS wells, sum(h.count)::bigint AS count,
       min(h.flow_rate_min) AS flow_rate_min, max(h.flow_rate_max) AS flow_rate_max,
       sum(h.flow_rate_mean * h.flow_rate_count) / nullif(sum(h.flow_rate_count), 0)::double precision AS flow_rate_mean, sum(h.flow_rate_count)::bigint AS flow_rate_count,
       min(h.pip_min) AS pip_min, max(h.pip_max) AS pip_max,
       sum(h.pip_mean * h.pip_count) / nullif(sum(h.pip_count), 0)::double precision AS pip_mean, sum(h.pip_count)::bigint AS pip_count,
       min(h.motor_current_min) AS motor_current_min, max(h.motor_current_max) AS motor_current_max,
       sum(h.motor_current_mean * h.motor_current_count) / nullif(sum(h.motor_current_count), 0)::double precision AS motor_current_mean, sum(h.motor_current_count)::bigint AS motor_current_count,
       min(h.motor_temp_min) AS motor_temp_min, max(h.motor_temp_max) AS motor_temp_max,
       sum(h.motor_temp_mean * h.motor_temp_count) / nullif(sum(h.motor_temp_count), 0)::double precision AS motor_temp_mean, sum(h.motor_temp_count)::bigint AS motor_temp_count,
       min(h.vibration_min) AS vibration_min, max(h.vibration_max) AS vibration_max,
       sum(h.vibration_mean * h.vibration_count) / nullif(sum(h.vibration_count), 0)::double precision AS vibration_mean, sum(h.vibration_count)::bigint AS vibration_count,
       min(h.vsd_frequency_min) AS vsd_frequency_min, max(h.vsd_frequency_max) AS vsd_frequency_max,
       sum(h.vsd_frequency_mean * h.vsd_frequency_count) / nullif(sum(h.vsd_frequency_count), 0)::double precision AS vsd_frequency_mean, sum(h.vsd_frequency_count)::bigint AS vsd_frequency_count,
       min(h.gor_min) AS gor_min, max(h.gor_max) AS gor_max,
       sum(h.gor_mean * h.gor_count) / nullif(sum(h.gor_count), 0)::double precision AS gor_mean, sum(h.gor_count)::bigint AS gor_count,
       min(h.discharge_pressure_min) AS discharge_pressure_min, max(h.discharge_pressure_max) AS discharge_pressure_max,
       sum(h.discharge_pressure_mean * h.discharge_pressure_count) / nullif(sum(h.discharge_pressure_count), 0)::double precision AS discharge_pressure_mean, sum(h.discharge_pressure_count)::bigint AS discharge_pressure_count,
       min(h.wellhead_pressure_min) AS wellhead_pressure_min, max(h.wellhead_pressure_max) AS wellhead_pressure_max,
       sum(h.wellhead_pressure_mean * h.wellhead_pressure_count) / nullif(sum(h.wellhead_pressure_count), 0)::double precision AS wellhead_pressure_mean, sum(h.wellhead_pressure_count)::bigint AS wellhead_pressure_count,
       min(h.casing_pressure_min) AS casing_pressure_min, max(h.casing_pressure_max) AS casing_pressure_max,
       sum(h.casing_pressure_mean * h.casing_pressure_count) / nullif(sum(h.casing_pressure_count), 0)::double precision AS casing_pressure_mean, sum(h.casing_pressure_count)::bigint AS casing_pressure_count,
       min(h.intake_temp_min) AS intake_temp_min, max(h.intake_temp_max) AS intake_temp_max,
       sum(h.intake_temp_mean * h.intake_temp_count) / nullif(sum(h.intake_temp_count), 0)::double precision AS intake_temp_mean, sum(h.intake_temp_count)::bigint AS intake_temp_count,
       min(h.leakage_current_min) AS leakage_current_min, max(h.leakage_current_max) AS leakage_current_max,
       sum(h.leakage_current_mean * h.leakage_current_count) / nullif(sum(h.leakage_current_count), 0)::double precision AS leakage_current_mean, sum(h.leakage_current_count)::bigint AS leakage_current_count,
       min(h.drive_voltage_min) AS drive_voltage_min, max(h.drive_voltage_max) AS drive_voltage_max,
       sum(h.drive_voltage_mean * h.drive_voltage_count) / nullif(sum(h.drive_voltage_count), 0)::double precision AS drive_voltage_mean, sum(h.drive_voltage_count)::bigint AS drive_voltage_count,
       sum(h.running_seconds) AS running_seconds
FROM aggregate_hours_now h
WHERE h.bucket >= (SELECT fleet_to FROM aggregate_state)
GROUP BY h.bucket;

CREATE VIEW esp_fleet_hourly AS
SELECT f.bucket, f.wells, f.count,
       f.flow_rate_min, f.flow_rate_max, f.flow_rate_mean,
       f.pip_min, f.pip_max, f.pip_mean,
       f.motor_current_min, f.motor_current_max, f.motor_current_mean,
       f.motor_temp_min, f.motor_temp_max, f.motor_temp_mean,
       f.vibration_min, f.vibration_max, f.vibration_mean,
       f.vsd_frequency_min, f.vsd_frequency_max, f.vsd_frequency_mean,
       f.gor_min, f.gor_max, f.gor_mean,
       f.discharge_pressure_min, f.discharge_pressure_max, f.discharge_pressure_mean,
       f.wellhead_pressure_min, f.wellhead_pressure_max, f.wellhead_pressure_mean,
       f.casing_pressure_min, f.casing_pressure_max, f.casing_pressure_mean,
       f.intake_temp_min, f.intake_temp_max, f.intake_temp_mean,
       f.leakage_current_min, f.leakage_current_max, f.leakage_current_mean,
       f.drive_voltage_min, f.drive_voltage_max, f.drive_voltage_mean,
       f.running_seconds
FROM aggregate_fleet_hours_now f;

CREATE VIEW esp_fleet_daily AS
SELECT date_bin(INTERVAL '1 day', f.bucket, TIMESTAMPTZ '2000-01-01 00:00:00Z') AS bucket, sum(f.count)::bigint AS count,
       min(f.flow_rate_min) AS flow_rate_min, max(f.flow_rate_max) AS flow_rate_max,
       sum(f.flow_rate_mean * f.flow_rate_count) / nullif(sum(f.flow_rate_count), 0)::double precision AS flow_rate_mean,
       min(f.pip_min) AS pip_min, max(f.pip_max) AS pip_max,
       sum(f.pip_mean * f.pip_count) / nullif(sum(f.pip_count), 0)::double precision AS pip_mean,
       min(f.motor_current_min) AS motor_current_min, max(f.motor_current_max) AS motor_current_max,
       sum(f.motor_current_mean * f.motor_current_count) / nullif(sum(f.motor_current_count), 0)::double precision AS motor_current_mean,
       min(f.motor_temp_min) AS motor_temp_min, max(f.motor_temp_max) AS motor_temp_max,
       sum(f.motor_temp_mean * f.motor_temp_count) / nullif(sum(f.motor_temp_count), 0)::double precision AS motor_temp_mean,
       min(f.vibration_min) AS vibration_min, max(f.vibration_max) AS vibration_max,
       sum(f.vibration_mean * f.vibration_count) / nullif(sum(f.vibration_count), 0)::double precision AS vibration_mean,
       min(f.vsd_frequency_min) AS vsd_frequency_min, max(f.vsd_frequency_max) AS vsd_frequency_max,
       sum(f.vsd_frequency_mean * f.vsd_frequency_count) / nullif(sum(f.vsd_frequency_count), 0)::double precision AS vsd_frequency_mean,
       min(f.gor_min) AS gor_min, max(f.gor_max) AS gor_max,
       sum(f.gor_mean * f.gor_count) / nullif(sum(f.gor_count), 0)::double precision AS gor_mean,
       min(f.discharge_pressure_min) AS discharge_pressure_min, max(f.discharge_pressure_max) AS discharge_pressure_max,
       sum(f.discharge_pressure_mean * f.discharge_pressure_count) / nullif(sum(f.discharge_pressure_count), 0)::double precision AS discharge_pressure_mean,
       min(f.wellhead_pressure_min) AS wellhead_pressure_min, max(f.wellhead_pressure_max) AS wellhead_pressure_max,
       sum(f.wellhead_pressure_mean * f.wellhead_pressure_count) / nullif(sum(f.wellhead_pressure_count), 0)::double precision AS wellhead_pressure_mean,
       min(f.casing_pressure_min) AS casing_pressure_min, max(f.casing_pressure_max) AS casing_pressure_max,
       sum(f.casing_pressure_mean * f.casing_pressure_count) / nullif(sum(f.casing_pressure_count), 0)::double precision AS casing_pressure_mean,
       min(f.intake_temp_min) AS intake_temp_min, max(f.intake_temp_max) AS intake_temp_max,
       sum(f.intake_temp_mean * f.intake_temp_count) / nullif(sum(f.intake_temp_count), 0)::double precision AS intake_temp_mean,
       min(f.leakage_current_min) AS leakage_current_min, max(f.leakage_current_max) AS leakage_current_max,
       sum(f.leakage_current_mean * f.leakage_current_count) / nullif(sum(f.leakage_current_count), 0)::double precision AS leakage_current_mean,
       min(f.drive_voltage_min) AS drive_voltage_min, max(f.drive_voltage_max) AS drive_voltage_max,
       sum(f.drive_voltage_mean * f.drive_voltage_count) / nullif(sum(f.drive_voltage_count), 0)::double precision AS drive_voltage_mean,
       sum(f.running_seconds) AS running_seconds
FROM aggregate_fleet_hours_now f
GROUP BY 1;
