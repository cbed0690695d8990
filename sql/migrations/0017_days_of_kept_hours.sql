-- works with programs of schema >= 12
-- As in 0016, but for FROM: hours that are kept are taken from their table, and readings are looked at only from the last of
-- them on. Before, gathering one day also gathered all later ones, to throw them away.
CREATE OR REPLACE FUNCTION aggregated_days(since timestamptz, until timestamptz) RETURNS SETOF aggregate_days
LANGUAGE sql STABLE ROWS 1000 SET search_path FROM CURRENT SET jit = off AS $$
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
    GROUP BY h.well_id, day
$$;
