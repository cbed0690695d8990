-- works with programs of schema >= 12
-- As in 0016 and 0017, with the functions' bodies bound to the tables when they are made (BEGIN ATOMIC): a reader whose
-- search_path leads elsewhere reads the right tables, and the planner merges both functions into the query, so that it gathers
-- the columns and the wells that are asked for, and no others.
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
               extract(epoch FROM t."timestamp")::double precision AS at,
               CASE WHEN (t.vsd_frequency IS NOT NULL OR t.motor_current IS NOT NULL)
                     AND coalesce(t.vsd_frequency > 5, true) AND coalesce(t.motor_current > 1, true)
                    THEN least(lead(t."timestamp") OVER (PARTITION BY t.well_id ORDER BY t."timestamp"),
                               t."timestamp" + INTERVAL '15 minutes') END AS runs_to
        FROM esp_telemetry t
        WHERE t."timestamp" >= since - INTERVAL '15 minutes' AND t."timestamp" < until AND isfinite(t."timestamp")
    ),
    gathered AS (
        SELECT r.well_id, r.hour, count(*) AS count,
               min(r.flow_rate) AS flow_rate_min, max(r.flow_rate) AS flow_rate_max, avg(r.flow_rate) FILTER (WHERE abs(r.flow_rate) < 1e100) AS flow_rate_mean,
               count(*) FILTER (WHERE abs(r.flow_rate) < 1e100) AS flow_rate_count,
               min(ARRAY[r.at, r.flow_rate]) FILTER (WHERE r.flow_rate IS NOT NULL) AS flow_rate_first, max(ARRAY[r.at, r.flow_rate]) FILTER (WHERE r.flow_rate IS NOT NULL) AS flow_rate_last,
               min(r.pip) AS pip_min, max(r.pip) AS pip_max, avg(r.pip) FILTER (WHERE abs(r.pip) < 1e100) AS pip_mean,
               count(*) FILTER (WHERE abs(r.pip) < 1e100) AS pip_count,
               min(ARRAY[r.at, r.pip]) FILTER (WHERE r.pip IS NOT NULL) AS pip_first, max(ARRAY[r.at, r.pip]) FILTER (WHERE r.pip IS NOT NULL) AS pip_last,
               min(r.motor_current) AS motor_current_min, max(r.motor_current) AS motor_current_max, avg(r.motor_current) FILTER (WHERE abs(r.motor_current) < 1e100) AS motor_current_mean,
               count(*) FILTER (WHERE abs(r.motor_current) < 1e100) AS motor_current_count,
               min(ARRAY[r.at, r.motor_current]) FILTER (WHERE r.motor_current IS NOT NULL) AS motor_current_first, max(ARRAY[r.at, r.motor_current]) FILTER (WHERE r.motor_current IS NOT NULL) AS motor_current_last,
               min(r.motor_temp) AS motor_temp_min, max(r.motor_temp) AS motor_temp_max, avg(r.motor_temp) FILTER (WHERE abs(r.motor_temp) < 1e100) AS motor_temp_mean,
               count(*) FILTER (WHERE abs(r.motor_temp) < 1e100) AS motor_temp_count,
               min(ARRAY[r.at, r.motor_temp]) FILTER (WHERE r.motor_temp IS NOT NULL) AS motor_temp_first, max(ARRAY[r.at, r.motor_temp]) FILTER (WHERE r.motor_temp IS NOT NULL) AS motor_temp_last,
               min(r.vibration) AS vibration_min, max(r.vibration) AS vibration_max, avg(r.vibration) FILTER (WHERE abs(r.vibration) < 1e100) AS vibration_mean,
               count(*) FILTER (WHERE abs(r.vibration) < 1e100) AS vibration_count,
               min(ARRAY[r.at, r.vibration]) FILTER (WHERE r.vibration IS NOT NULL) AS vibration_first, max(ARRAY[r.at, r.vibration]) FILTER (WHERE r.vibration IS NOT NULL) AS vibration_last,
               min(r.vsd_frequency) AS vsd_frequency_min, max(r.vsd_frequency) AS vsd_frequency_max, avg(r.vsd_frequency) FILTER (WHERE abs(r.vsd_frequency) < 1e100) AS vsd_frequency_mean,
               count(*) FILTER (WHERE abs(r.vsd_frequency) < 1e100) AS vsd_frequency_count,
               min(ARRAY[r.at, r.vsd_frequency]) FILTER (WHERE r.vsd_frequency IS NOT NULL) AS vsd_frequency_first, max(ARRAY[r.at, r.vsd_frequency]) FILTER (WHERE r.vsd_frequency IS NOT NULL) AS vsd_frequency_last,
               min(r.gor) AS gor_min, max(r.gor) AS gor_max, avg(r.gor) FILTER (WHERE abs(r.gor) < 1e100) AS gor_mean,
               count(*) FILTER (WHERE abs(r.gor) < 1e100) AS gor_count,
               min(ARRAY[r.at, r.gor]) FILTER (WHERE r.gor IS NOT NULL) AS gor_first, max(ARRAY[r.at, r.gor]) FILTER (WHERE r.gor IS NOT NULL) AS gor_last,
               min(r.discharge_pressure) AS discharge_pressure_min, max(r.discharge_pressure) AS discharge_pressure_max, avg(r.discharge_pressure) FILTER (WHERE abs(r.discharge_pressure) < 1e100) AS discharge_pressure_mean,
               count(*) FILTER (WHERE abs(r.discharge_pressure) < 1e100) AS discharge_pressure_count,
               min(ARRAY[r.at, r.discharge_pressure]) FILTER (WHERE r.discharge_pressure IS NOT NULL) AS discharge_pressure_first, max(ARRAY[r.at, r.discharge_pressure]) FILTER (WHERE r.discharge_pressure IS NOT NULL) AS discharge_pressure_last,
               min(r.wellhead_pressure) AS wellhead_pressure_min, max(r.wellhead_pressure) AS wellhead_pressure_max, avg(r.wellhead_pressure) FILTER (WHERE abs(r.wellhead_pressure) < 1e100) AS wellhead_pressure_mean,
               count(*) FILTER (WHERE abs(r.wellhead_pressure) < 1e100) AS wellhead_pressure_count,
               min(ARRAY[r.at, r.wellhead_pressure]) FILTER (WHERE r.wellhead_pressure IS NOT NULL) AS wellhead_pressure_first, max(ARRAY[r.at, r.wellhead_pressure]) FILTER (WHERE r.wellhead_pressure IS NOT NULL) AS wellhead_pressure_last,
               min(r.casing_pressure) AS casing_pressure_min, max(r.casing_pressure) AS casing_pressure_max, avg(r.casing_pressure) FILTER (WHERE abs(r.casing_pressure) < 1e100) AS casing_pressure_mean,
               count(*) FILTER (WHERE abs(r.casing_pressure) < 1e100) AS casing_pressure_count,
               min(ARRAY[r.at, r.casing_pressure]) FILTER (WHERE r.casing_pressure IS NOT NULL) AS casing_pressure_first, max(ARRAY[r.at, r.casing_pressure]) FILTER (WHERE r.casing_pressure IS NOT NULL) AS casing_pressure_last,
               min(r.intake_temp) AS intake_temp_min, max(r.intake_temp) AS intake_temp_max, avg(r.intake_temp) FILTER (WHERE abs(r.intake_temp) < 1e100) AS intake_temp_mean,
               count(*) FILTER (WHERE abs(r.intake_temp) < 1e100) AS intake_temp_count,
               min(ARRAY[r.at, r.intake_temp]) FILTER (WHERE r.intake_temp IS NOT NULL) AS intake_temp_first, max(ARRAY[r.at, r.intake_temp]) FILTER (WHERE r.intake_temp IS NOT NULL) AS intake_temp_last,
               min(r.leakage_current) AS leakage_current_min, max(r.leakage_current) AS leakage_current_max, avg(r.leakage_current) FILTER (WHERE abs(r.leakage_current) < 1e100) AS leakage_current_mean,
               count(*) FILTER (WHERE abs(r.leakage_current) < 1e100) AS leakage_current_count,
               min(ARRAY[r.at, r.leakage_current]) FILTER (WHERE r.leakage_current IS NOT NULL) AS leakage_current_first, max(ARRAY[r.at, r.leakage_current]) FILTER (WHERE r.leakage_current IS NOT NULL) AS leakage_current_last,
               min(r.drive_voltage) AS drive_voltage_min, max(r.drive_voltage) AS drive_voltage_max, avg(r.drive_voltage) FILTER (WHERE abs(r.drive_voltage) < 1e100) AS drive_voltage_mean,
               count(*) FILTER (WHERE abs(r.drive_voltage) < 1e100) AS drive_voltage_count,
               min(ARRAY[r.at, r.drive_voltage]) FILTER (WHERE r.drive_voltage IS NOT NULL) AS drive_voltage_first, max(ARRAY[r.at, r.drive_voltage]) FILTER (WHERE r.drive_voltage IS NOT NULL) AS drive_voltage_last,
               coalesce(sum(extract(epoch FROM least(r.runs_to, r.hour + INTERVAL '1 hour') - r."timestamp"))
                        FILTER (WHERE r.runs_to IS NOT NULL), 0) AS within,
               coalesce(sum(extract(epoch FROM greatest(r.runs_to - (r.hour + INTERVAL '1 hour'), INTERVAL '0')))
                        FILTER (WHERE r.runs_to IS NOT NULL), 0) AS beyond
        FROM reading r
        GROUP BY r.well_id, r.hour
    ),
    joined AS (
        SELECT g.*, CASE WHEN lag(g.hour) OVER hours = g.hour - INTERVAL '1 hour' THEN lag(g.beyond) OVER hours ELSE 0 END
                    AS carried
        FROM gathered g
        WINDOW hours AS (PARTITION BY g.well_id ORDER BY g.hour)
    )
    SELECT j.well_id, j.hour, j.count,
           j.flow_rate_min, j.flow_rate_max, j.flow_rate_mean, j.flow_rate_first[2], j.flow_rate_last[2], j.flow_rate_count,
           j.pip_min, j.pip_max, j.pip_mean, j.pip_first[2], j.pip_last[2], j.pip_count,
           j.motor_current_min, j.motor_current_max, j.motor_current_mean, j.motor_current_first[2], j.motor_current_last[2], j.motor_current_count,
           j.motor_temp_min, j.motor_temp_max, j.motor_temp_mean, j.motor_temp_first[2], j.motor_temp_last[2], j.motor_temp_count,
           j.vibration_min, j.vibration_max, j.vibration_mean, j.vibration_first[2], j.vibration_last[2], j.vibration_count,
           j.vsd_frequency_min, j.vsd_frequency_max, j.vsd_frequency_mean, j.vsd_frequency_first[2], j.vsd_frequency_last[2], j.vsd_frequency_count,
           j.gor_min, j.gor_max, j.gor_mean, j.gor_first[2], j.gor_last[2], j.gor_count,
           j.discharge_pressure_min, j.discharge_pressure_max, j.discharge_pressure_mean, j.discharge_pressure_first[2], j.discharge_pressure_last[2], j.discharge_pressure_count,
           j.wellhead_pressure_min, j.wellhead_pressure_max, j.wellhead_pressure_mean, j.wellhead_pressure_first[2], j.wellhead_pressure_last[2], j.wellhead_pressure_count,
           j.casing_pressure_min, j.casing_pressure_max, j.casing_pressure_mean, j.casing_pressure_first[2], j.casing_pressure_last[2], j.casing_pressure_count,
           j.intake_temp_min, j.intake_temp_max, j.intake_temp_mean, j.intake_temp_first[2], j.intake_temp_last[2], j.intake_temp_count,
           j.leakage_current_min, j.leakage_current_max, j.leakage_current_mean, j.leakage_current_first[2], j.leakage_current_last[2], j.leakage_current_count,
           j.drive_voltage_min, j.drive_voltage_max, j.drive_voltage_mean, j.drive_voltage_first[2], j.drive_voltage_last[2], j.drive_voltage_count,
           (j.within + j.carried)::double precision
    FROM joined j
    WHERE j.hour >= since;
END;

CREATE OR REPLACE FUNCTION aggregated_days(since timestamptz, until timestamptz) RETURNS SETOF aggregate_days
LANGUAGE sql STABLE ROWS 1000
BEGIN ATOMIC
    SELECT h.well_id, date_bin(INTERVAL '1 day', h.bucket, TIMESTAMPTZ '2000-01-01 00:00:00Z') AS day, sum(h.count)::bigint,
           min(h.flow_rate_min), max(h.flow_rate_max), sum(h.flow_rate_mean * h.flow_rate_count) / nullif(sum(h.flow_rate_count), 0)::double precision,
           (array_agg(h.flow_rate_first ORDER BY h.bucket) FILTER (WHERE h.flow_rate_first IS NOT NULL))[1],
           (array_agg(h.flow_rate_last ORDER BY h.bucket DESC) FILTER (WHERE h.flow_rate_last IS NOT NULL))[1], sum(h.flow_rate_count)::bigint,
           min(h.pip_min), max(h.pip_max), sum(h.pip_mean * h.pip_count) / nullif(sum(h.pip_count), 0)::double precision,
           (array_agg(h.pip_first ORDER BY h.bucket) FILTER (WHERE h.pip_first IS NOT NULL))[1],
           (array_agg(h.pip_last ORDER BY h.bucket DESC) FILTER (WHERE h.pip_last IS NOT NULL))[1], sum(h.pip_count)::bigint,
           min(h.motor_current_min), max(h.motor_current_max), sum(h.motor_current_mean * h.motor_current_count) / nullif(sum(h.motor_current_count), 0)::double precision,
           (array_agg(h.motor_current_first ORDER BY h.bucket) FILTER (WHERE h.motor_current_first IS NOT NULL))[1],
           (array_agg(h.motor_current_last ORDER BY h.bucket DESC) FILTER (WHERE h.motor_current_last IS NOT NULL))[1], sum(h.motor_current_count)::bigint,
           min(h.motor_temp_min), max(h.motor_temp_max), sum(h.motor_temp_mean * h.motor_temp_count) / nullif(sum(h.motor_temp_count), 0)::double precision,
           (array_agg(h.motor_temp_first ORDER BY h.bucket) FILTER (WHERE h.motor_temp_first IS NOT NULL))[1],
           (array_agg(h.motor_temp_last ORDER BY h.bucket DESC) FILTER (WHERE h.motor_temp_last IS NOT NULL))[1], sum(h.motor_temp_count)::bigint,
           min(h.vibration_min), max(h.vibration_max), sum(h.vibration_mean * h.vibration_count) / nullif(sum(h.vibration_count), 0)::double precision,
           (array_agg(h.vibration_first ORDER BY h.bucket) FILTER (WHERE h.vibration_first IS NOT NULL))[1],
           (array_agg(h.vibration_last ORDER BY h.bucket DESC) FILTER (WHERE h.vibration_last IS NOT NULL))[1], sum(h.vibration_count)::bigint,
           min(h.vsd_frequency_min), max(h.vsd_frequency_max), sum(h.vsd_frequency_mean * h.vsd_frequency_count) / nullif(sum(h.vsd_frequency_count), 0)::double precision,
           (array_agg(h.vsd_frequency_first ORDER BY h.bucket) FILTER (WHERE h.vsd_frequency_first IS NOT NULL))[1],
           (array_agg(h.vsd_frequency_last ORDER BY h.bucket DESC) FILTER (WHERE h.vsd_frequency_last IS NOT NULL))[1], sum(h.vsd_frequency_count)::bigint,
           min(h.gor_min), max(h.gor_max), sum(h.gor_mean * h.gor_count) / nullif(sum(h.gor_count), 0)::double precision,
           (array_agg(h.gor_first ORDER BY h.bucket) FILTER (WHERE h.gor_first IS NOT NULL))[1],
           (array_agg(h.gor_last ORDER BY h.bucket DESC) FILTER (WHERE h.gor_last IS NOT NULL))[1], sum(h.gor_count)::bigint,
           min(h.discharge_pressure_min), max(h.discharge_pressure_max), sum(h.discharge_pressure_mean * h.discharge_pressure_count) / nullif(sum(h.discharge_pressure_count), 0)::double precision,
           (array_agg(h.discharge_pressure_first ORDER BY h.bucket) FILTER (WHERE h.discharge_pressure_first IS NOT NULL))[1],
           (array_agg(h.discharge_pressure_last ORDER BY h.bucket DESC) FILTER (WHERE h.discharge_pressure_last IS NOT NULL))[1], sum(h.discharge_pressure_count)::bigint,
           min(h.wellhead_pressure_min), max(h.wellhead_pressure_max), sum(h.wellhead_pressure_mean * h.wellhead_pressure_count) / nullif(sum(h.wellhead_pressure_count), 0)::double precision,
           (array_agg(h.wellhead_pressure_first ORDER BY h.bucket) FILTER (WHERE h.wellhead_pressure_first IS NOT NULL))[1],
           (array_agg(h.wellhead_pressure_last ORDER BY h.bucket DESC) FILTER (WHERE h.wellhead_pressure_last IS NOT NULL))[1], sum(h.wellhead_pressure_count)::bigint,
           min(h.casing_pressure_min), max(h.casing_pressure_max), sum(h.casing_pressure_mean * h.casing_pressure_count) / nullif(sum(h.casing_pressure_count), 0)::double precision,
           (array_agg(h.casing_pressure_first ORDER BY h.bucket) FILTER (WHERE h.casing_pressure_first IS NOT NULL))[1],
           (array_agg(h.casing_pressure_last ORDER BY h.bucket DESC) FILTER (WHERE h.casing_pressure_last IS NOT NULL))[1], sum(h.casing_pressure_count)::bigint,
           min(h.intake_temp_min), max(h.intake_temp_max), sum(h.intake_temp_mean * h.intake_temp_count) / nullif(sum(h.intake_temp_count), 0)::double precision,
           (array_agg(h.intake_temp_first ORDER BY h.bucket) FILTER (WHERE h.intake_temp_first IS NOT NULL))[1],
           (array_agg(h.intake_temp_last ORDER BY h.bucket DESC) FILTER (WHERE h.intake_temp_last IS NOT NULL))[1], sum(h.intake_temp_count)::bigint,
           min(h.leakage_current_min), max(h.leakage_current_max), sum(h.leakage_current_mean * h.leakage_current_count) / nullif(sum(h.leakage_current_count), 0)::double precision,
           (array_agg(h.leakage_current_first ORDER BY h.bucket) FILTER (WHERE h.leakage_current_first IS NOT NULL))[1],
           (array_agg(h.leakage_current_last ORDER BY h.bucket DESC) FILTER (WHERE h.leakage_current_last IS NOT NULL))[1], sum(h.leakage_current_count)::bigint,
           min(h.drive_voltage_min), max(h.drive_voltage_max), sum(h.drive_voltage_mean * h.drive_voltage_count) / nullif(sum(h.drive_voltage_count), 0)::double precision,
           (array_agg(h.drive_voltage_first ORDER BY h.bucket) FILTER (WHERE h.drive_voltage_first IS NOT NULL))[1],
           (array_agg(h.drive_voltage_last ORDER BY h.bucket DESC) FILTER (WHERE h.drive_voltage_last IS NOT NULL))[1], sum(h.drive_voltage_count)::bigint,
           sum(h.running_seconds)
    FROM (
        SELECT kept.*
        FROM aggregate_hours kept
        WHERE kept.bucket >= since AND kept.bucket < until AND kept.bucket < (SELECT hours_to FROM aggregate_state)
        UNION ALL
        SELECT live.*
        FROM aggregate_state s
        CROSS JOIN LATERAL aggregated_hours(greatest(s.hours_to, since), until) AS live
        WHERE s.hours_to < until  -- else no reading is looked at
    ) AS h
    GROUP BY h.well_id, day;
END;

-- What is in alarm later is a sum, so it is one row, which the planner leaves out if no one asks for it. The function is called
-- once a query, for rows that reach so far, since its arguments do not depend on the row.
CREATE OR REPLACE VIEW esp_telemetry_hourly AS
SELECT h.well_id, h.bucket, h.count,
       h.flow_rate_min, h.flow_rate_max, h.flow_rate_mean, h.flow_rate_first, h.flow_rate_last,
       h.pip_min, h.pip_max, h.pip_mean, h.pip_first, h.pip_last,
       h.motor_current_min, h.motor_current_max, h.motor_current_mean, h.motor_current_first, h.motor_current_last,
       h.motor_temp_min, h.motor_temp_max, h.motor_temp_mean, h.motor_temp_first, h.motor_temp_last,
       h.vibration_min, h.vibration_max, h.vibration_mean, h.vibration_first, h.vibration_last,
       h.vsd_frequency_min, h.vsd_frequency_max, h.vsd_frequency_mean, h.vsd_frequency_first, h.vsd_frequency_last,
       h.gor_min, h.gor_max, h.gor_mean, h.gor_first, h.gor_last,
       h.discharge_pressure_min, h.discharge_pressure_max, h.discharge_pressure_mean, h.discharge_pressure_first, h.discharge_pressure_last,
       h.wellhead_pressure_min, h.wellhead_pressure_max, h.wellhead_pressure_mean, h.wellhead_pressure_first, h.wellhead_pressure_last,
       h.casing_pressure_min, h.casing_pressure_max, h.casing_pressure_mean, h.casing_pressure_first, h.casing_pressure_last,
       h.intake_temp_min, h.intake_temp_max, h.intake_temp_mean, h.intake_temp_first, h.intake_temp_last,
       h.leakage_current_min, h.leakage_current_max, h.leakage_current_mean, h.leakage_current_first, h.leakage_current_last,
       h.drive_voltage_min, h.drive_voltage_max, h.drive_voltage_mean, h.drive_voltage_first, h.drive_voltage_last,
       h.running_seconds,
       coalesce(kept.alarm_critical_seconds, later.alarm_critical_seconds, 0) AS alarm_critical_seconds,
       coalesce(kept.alarm_high_seconds, later.alarm_high_seconds, 0) AS alarm_high_seconds,
       coalesce(kept.alarm_medium_seconds, later.alarm_medium_seconds, 0) AS alarm_medium_seconds,
       coalesce(kept.alarm_low_seconds, later.alarm_low_seconds, 0) AS alarm_low_seconds,
       coalesce(kept.alarm_info_seconds, later.alarm_info_seconds, 0) AS alarm_info_seconds
FROM aggregate_hours_now h
LEFT JOIN aggregate_alarm_hours kept ON kept.well_id = h.well_id AND kept.bucket = h.bucket
    AND kept.bucket < (SELECT alarms_to FROM aggregate_state)
LEFT JOIN LATERAL (
    SELECT sum(live.alarm_critical_seconds) AS alarm_critical_seconds,
           sum(live.alarm_high_seconds) AS alarm_high_seconds,
           sum(live.alarm_medium_seconds) AS alarm_medium_seconds,
           sum(live.alarm_low_seconds) AS alarm_low_seconds,
           sum(live.alarm_info_seconds) AS alarm_info_seconds
    FROM aggregated_alarm_hours((SELECT alarms_to FROM aggregate_state), 'infinity') AS live
    WHERE live.well_id = h.well_id AND live.bucket = h.bucket
      AND h.bucket >= (SELECT alarms_to FROM aggregate_state)
) AS later ON true;

CREATE OR REPLACE VIEW esp_telemetry_daily AS
WITH day AS (
    SELECT d.*
    FROM aggregate_days d
    WHERE d.bucket < (SELECT days_to FROM aggregate_state)
    UNION ALL
    SELECT live.*
    FROM aggregate_state s
    CROSS JOIN LATERAL aggregated_days(s.days_to, 'infinity') AS live
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
