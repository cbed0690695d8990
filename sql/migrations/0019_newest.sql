-- works with programs of schema >= 12
-- The newest reading of each well at once: a table that the daemon keeps after its batches (decision 0015), read by the view
-- well_latest. What else writes to esp_telemetry leaves a mark, with which the view goes by the readings.

CREATE TABLE well_newest (
    "timestamp"        timestamptz NOT NULL,
    well_id            text PRIMARY KEY,
    flow_rate          double precision,
    pip                double precision,
    motor_current      double precision,
    motor_temp         double precision,
    vibration          double precision,
    vsd_frequency      double precision,
    gor                double precision,
    discharge_pressure double precision,
    wellhead_pressure  double precision,
    casing_pressure    double precision,
    intake_temp        double precision,
    leakage_current    double precision,
    drive_voltage      double precision,
    extra              jsonb,
    quality            jsonb,
    received_at        timestamptz NOT NULL
) WITH (fillfactor = 50);  -- room for a row's next version in its page

-- A row says that well_newest may not be what the readings say.
CREATE TABLE well_newest_stale (
    since timestamptz NOT NULL DEFAULT now()
);
-- From the start: nothing is kept yet.
INSERT INTO well_newest_stale DEFAULT VALUES;

-- SECURITY DEFINER: whoever may write readings leaves the mark.
CREATE FUNCTION mark_well_newest_stale() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM well_newest_stale) THEN
        INSERT INTO well_newest_stale DEFAULT VALUES;
    END IF;
    RETURN NULL;
END
$$;

-- Once a statement and not once a row; not at all in the sessions of a daemon that keeps well_newest.
CREATE TRIGGER esp_telemetry_well_newest
AFTER INSERT OR UPDATE OR DELETE ON esp_telemetry FOR EACH STATEMENT
WHEN (current_setting('esp_ingest.keeps_well_newest', true) IS DISTINCT FROM 'on')
EXECUTE FUNCTION mark_well_newest_stale();

-- The newest readings out of esp_telemetry. SELECT DISTINCT would read the whole table: this walks the primary key from one
-- well_id to the next (a loose index scan), and takes one row of each from the same key. SET keeps the planner from merging
-- it into queries, which would look at every chunk then although they need none.
CREATE FUNCTION well_newest_of_readings() RETURNS SETOF well_newest
LANGUAGE sql STABLE ROWS 1000 SET search_path FROM CURRENT SET jit = off AS $$
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
        SELECT "timestamp", well_id, flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency, gor,
               discharge_pressure, wellhead_pressure, casing_pressure, intake_temp, leakage_current, drive_voltage, extra,
               quality, received_at
        FROM esp_telemetry t WHERE t.well_id = well.well_id ORDER BY t."timestamp" DESC LIMIT 1
    ) AS latest
    WHERE well.well_id IS NOT NULL
$$;

-- What well_newest should hold: the newest of the readings, and of silent wells what was dropped since.
CREATE VIEW well_newest_now AS
SELECT DISTINCT ON (found.well_id) found.*
FROM (
    SELECT r.* FROM well_newest_of_readings() AS r
    UNION ALL
    SELECT n.*
    FROM well_newest n
    WHERE EXISTS (SELECT FROM archive_days d
                  WHERE d.relation = 'esp_telemetry' AND d.dropped_at IS NOT NULL
                    AND d.day = (n."timestamp" AT TIME ZONE 'UTC')::date)
) AS found
ORDER BY found.well_id, found."timestamp" DESC;

-- Make well_newest right again. Waits for the lock; then nobody writes to it until the end of the transaction. Marks that are
-- not committed yet, and the readings they are for, stay for the next time.
CREATE FUNCTION refresh_well_newest() RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    LOCK TABLE well_newest IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM well_newest_stale;
    WITH right_now AS MATERIALIZED (SELECT * FROM well_newest_now),
    gone AS (
        DELETE FROM well_newest n WHERE NOT EXISTS (SELECT FROM right_now r WHERE r.well_id = n.well_id)
    )
    INSERT INTO well_newest AS n SELECT * FROM right_now
    ON CONFLICT (well_id) DO UPDATE
    SET ("timestamp", flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency, gor, discharge_pressure,
         wellhead_pressure, casing_pressure, intake_temp, leakage_current, drive_voltage, extra, quality, received_at)
        = (excluded."timestamp", excluded.flow_rate, excluded.pip, excluded.motor_current, excluded.motor_temp,
           excluded.vibration, excluded.vsd_frequency, excluded.gor, excluded.discharge_pressure,
           excluded.wellhead_pressure, excluded.casing_pressure, excluded.intake_temp, excluded.leakage_current,
           excluded.drive_voltage, excluded.extra, excluded.quality, excluded.received_at)
    WHERE n IS DISTINCT FROM excluded;
END
$$;

-- The newest reading of each well. Readings are looked at only while there is a mark.
CREATE OR REPLACE VIEW well_latest AS
SELECT "timestamp", well_id, flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency, gor, discharge_pressure,
       wellhead_pressure, casing_pressure, intake_temp, leakage_current, drive_voltage, extra, quality, received_at
FROM well_newest
WHERE NOT EXISTS (SELECT FROM well_newest_stale)
UNION ALL
SELECT "timestamp", well_id, flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency, gor, discharge_pressure,
       wellhead_pressure, casing_pressure, intake_temp, leakage_current, drive_voltage, extra, quality, received_at
FROM well_newest_now
WHERE EXISTS (SELECT FROM well_newest_stale);
