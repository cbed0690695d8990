-- What operators did to alarms, for ever: who, when and why. Appended under a lock (see lock_alarm_actions), so that ids
-- appear in order and the daemon can follow them.
CREATE TABLE alarm_actions (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    well_id     text NOT NULL,
    diagnosis   text NOT NULL,
    action      text NOT NULL CHECK (action IN ('ack', 'shelve', 'unshelve')),
    by_whom     text NOT NULL,
    why         text NOT NULL,
    raised_at   timestamptz,  -- ack: the occurrence
    shelved_to  timestamptz   -- shelve: its end
);

-- What is shelved: one row a well and diagnosis, of no effect once its end has come. Never without an end.
CREATE TABLE alarm_shelves (
    well_id     text NOT NULL,
    diagnosis   text NOT NULL,
    shelved_to  timestamptz NOT NULL,
    by_whom     text NOT NULL,
    why         text NOT NULL,
    PRIMARY KEY (well_id, diagnosis)
);

-- Limits, delays and severities as they came into force: a row for each change of what a group or a well has (or, under
-- "defaults", all others), written when the daemon loads rules that say something new.
CREATE TABLE alarm_limits_history (
    scope    text NOT NULL,
    since    timestamptz NOT NULL DEFAULT now(),
    settings jsonb NOT NULL,  -- {} : the scope is gone
    rules    text NOT NULL,   -- the file
    PRIMARY KEY (scope, since)
);

-- The state that an occurrence gets where the rules say "new" and the row says "old": what an operator did stays. The
-- daemon hears of it seconds later, and what it replays after a restart is from before.
CREATE FUNCTION alarm_state(
    old_state text, old_severity text, old_cleared_at timestamptz,
    new_state text, new_severity text, new_cleared_at timestamptz, shelved boolean
) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN old_state = 'acknowledged' AND new_state = 'returned-unacknowledged' THEN 'normal'
        WHEN old_state = 'normal' AND new_state = 'returned-unacknowledged'
             AND old_cleared_at = new_cleared_at THEN 'normal'
        WHEN new_cleared_at IS NULL AND new_state IN ('unacknowledged', 'acknowledged', 'latched') AND shelved
            THEN 'shelved'
        WHEN old_state = 'acknowledged' AND new_state IN ('unacknowledged', 'latched')
             AND old_severity = new_severity THEN 'acknowledged'  -- a graver step has to be acknowledged again
        ELSE new_state
    END
$$;

-- The health of the alarm system itself (ISA-18.2, EEMUA 191), over the last 24 hours. Events (info) and what was
-- suppressed or shelved from the start are no alarms.
CREATE VIEW alarm_health AS
WITH alarm AS (
    SELECT well_id, diagnosis, "timestamp", cleared_at, state, occurrences,
           greatest(extract(epoch FROM coalesce(cleared_at, now()) - "timestamp") / 60, 1) AS minutes
    FROM diagnostic_results
    WHERE "timestamp" > now() - INTERVAL '24 hours' AND severity <> 'info'
      AND state NOT IN ('suppressed', 'shelved', 'out_of_service')
),
loudest AS (
    SELECT well_id, diagnosis, count(*) AS alarms FROM alarm GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 10
),
a_minute AS (
    SELECT well_id, diagnosis, max(times) AS times
    FROM (
        SELECT well_id, diagnosis, sum(occurrences / minutes) AS times
        FROM alarm GROUP BY well_id, diagnosis, date_trunc('minute', "timestamp")
    ) AS minute
    GROUP BY 1, 2
)
SELECT 'alarms_per_10_minutes' AS measure, NULL::text AS well_id, NULL::text AS diagnosis,
       round(count(*) / 144.0, 3)::double precision AS value
FROM alarm
UNION ALL
SELECT 'alarms_per_10_minutes', well_id, NULL, round(count(*) / 144.0, 3)::double precision FROM alarm GROUP BY well_id
UNION ALL
SELECT 'chattering_per_minute', well_id, diagnosis, round(times, 1)::double precision FROM a_minute WHERE times >= 3
UNION ALL
SELECT 'stale_hours', well_id, diagnosis,
       round(extract(epoch FROM now() - "timestamp") / 3600, 1)::double precision
FROM diagnostic_results
WHERE cleared_at IS NULL AND "timestamp" < now() - INTERVAL '24 hours'
UNION ALL
SELECT 'shelved_hours_left', well_id, diagnosis,
       round(extract(epoch FROM shelved_to - now()) / 3600, 2)::double precision
FROM alarm_shelves
WHERE shelved_to > now()
UNION ALL
SELECT 'suppressed', well_id, diagnosis, count(*)::double precision
FROM diagnostic_results
WHERE "timestamp" > now() - INTERVAL '24 hours' AND state = 'suppressed'
GROUP BY well_id, diagnosis
UNION ALL
SELECT 'loudest', well_id, diagnosis, alarms::double precision FROM loudest;
