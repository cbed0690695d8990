-- What the HTTP API and the command `users` send, in the form of queries.sql. A name in braces stands for a list of columns
-- or a table, which esp_ingest/api fills in by way of psycopg.sql from closed lists.

-- name: api_schema_there
-- Has `esp-ingest migrate` been here?
SELECT to_regclass('esp_telemetry') IS NOT NULL AND to_regclass('api_users') IS NOT NULL;

-- name: api_has_users
-- Is there anybody who could sign in?
SELECT EXISTS (SELECT FROM api_users WHERE disabled_at IS NULL);

-- name: api_user
-- One by name.
SELECT name, password_hash, role, wells, disabled_at IS NOT NULL FROM api_users WHERE name = %(name)s;

-- name: api_session_user
-- Whether a session's user is still welcome: its role and wells as they are now. No row where the session has ended.
SELECT u.role, u.wells
FROM api_users u
WHERE u.name = %(name)s AND u.disabled_at IS NULL
  AND EXISTS (SELECT FROM api_refresh_tokens r WHERE r.family = %(family)s AND r.user_name = u.name)
  AND NOT EXISTS (SELECT FROM api_refresh_tokens r WHERE r.family = %(family)s AND r.revoked_at IS NOT NULL);

-- name: api_token_user
-- The user of a machine's token that holds now.
SELECT u.name, u.role, u.wells, t.expires_at
FROM api_tokens t JOIN api_users u ON u.name = t.user_name
WHERE t.token_hash = %(hash)s AND t.revoked_at IS NULL AND t.expires_at > now() AND u.disabled_at IS NULL;

-- name: api_add_user
-- Nothing where the name is taken.
INSERT INTO api_users (name, password_hash, role, wells) VALUES (%(name)s, %(hash)s, %(role)s, %(wells)s)
ON CONFLICT DO NOTHING;

-- name: api_list_users
-- All, with their tokens that hold.
SELECT u.name, u.role, u.wells, u.created_at, u.disabled_at,
       (SELECT count(*) FROM api_tokens t
        WHERE t.user_name = u.name AND t.revoked_at IS NULL AND t.expires_at > now()) AS tokens
FROM api_users u
ORDER BY u.name;

-- name: api_disable_user
-- Signs in no more; api_end_sessions and api_end_tokens end what he has.
UPDATE api_users SET disabled_at = coalesce(disabled_at, now()) WHERE name = %(name)s;

-- name: api_set_password
-- Also lets a disabled user in again.
UPDATE api_users SET password_hash = %(hash)s, disabled_at = NULL WHERE name = %(name)s;

-- name: api_rehash_password
-- The same password with the newest parameters.
UPDATE api_users SET password_hash = %(hash)s WHERE name = %(name)s AND password_hash = %(old)s;

-- name: api_change_user
-- What is NULL stays.
UPDATE api_users
SET role = coalesce(%(role)s::text, role), wells = coalesce(%(wells)s::text[], wells)
WHERE name = %(name)s;

-- name: api_end_sessions
-- Of a user.
UPDATE api_refresh_tokens SET revoked_at = now() WHERE user_name = %(name)s AND revoked_at IS NULL;

-- name: api_end_tokens
-- Of a user.
UPDATE api_tokens SET revoked_at = now() WHERE user_name = %(name)s AND revoked_at IS NULL;

-- name: api_add_token
-- Of a machine.
INSERT INTO api_tokens (token_hash, user_name, expires_at) VALUES (%(hash)s, %(name)s, %(expires_at)s);

-- name: api_add_refresh_token
-- The first of a family, or the next.
INSERT INTO api_refresh_tokens (token_hash, family, user_name, expires_at)
VALUES (%(hash)s, %(family)s, %(name)s, %(expires_at)s);

-- name: api_take_refresh_token
-- Locked, so that of two uses at the same time the second sees the first.
SELECT r.family, r.user_name, r.used_at IS NOT NULL, r.revoked_at IS NOT NULL, r.expires_at <= now(),
       u.disabled_at IS NOT NULL, u.role
FROM api_refresh_tokens r JOIN api_users u ON u.name = r.user_name
WHERE r.token_hash = %(hash)s
FOR UPDATE OF r;

-- name: api_use_refresh_token
-- Good for one use.
UPDATE api_refresh_tokens SET used_at = now() WHERE token_hash = %(hash)s;

-- name: api_revoke_family
-- A sign-out, or a token that was used twice.
UPDATE api_refresh_tokens SET revoked_at = now() WHERE family = %(family)s AND revoked_at IS NULL;

-- name: api_forget_sessions
-- Long over.
DELETE FROM api_refresh_tokens WHERE expires_at < now() - INTERVAL '1 day';

-- name: api_record
-- Who did what, from where.
INSERT INTO api_audit (who, address, action, detail) VALUES (%(who)s, %(address)s, %(action)s, %(detail)s::text::jsonb);

-- name: api_audit_page
-- Newest first.
SELECT id, at, who, address, action, detail
FROM api_audit
WHERE (%(before)s::bigint IS NULL OR id < %(before)s)
  AND (%(who)s::text IS NULL OR who = %(who)s)
  AND (%(action)s::text IS NULL OR action = %(action)s)
ORDER BY id DESC
LIMIT %(limit)s;

-- name: api_newest
-- The newest reading of each well.
SELECT well_id, "timestamp", :signals
FROM well_latest;

-- name: api_newest_of_well
-- The newest reading of one; well_latest has that of a well whose readings have all been dropped, and is looked at for no
-- other.
WITH found AS (
    SELECT "timestamp", received_at, :signals, extra, quality
    FROM esp_telemetry
    WHERE well_id = %(well)s
    ORDER BY "timestamp" DESC
    LIMIT 1
)
SELECT * FROM found
UNION ALL
SELECT "timestamp", received_at, :signals, extra, quality
FROM well_latest
WHERE well_id = %(well)s AND NOT EXISTS (SELECT FROM found);

-- name: api_open_alarms
-- What is open now, of one well or (NULL) of all.
SELECT well_id, diagnosis, "timestamp", severity, state, value, threshold, message
FROM diagnostic_results
WHERE cleared_at IS NULL AND (%(well)s::text IS NULL OR well_id = %(well)s)
ORDER BY well_id, "timestamp" DESC, diagnosis;

-- name: api_shelved
-- What is shelved at a well.
SELECT diagnosis, shelved_to, by_whom, why FROM alarm_shelves
WHERE well_id = %(well)s AND shelved_to > now()
ORDER BY diagnosis;

-- name: api_rules_off
-- Rules that cannot run at a well, and why.
SELECT diagnosis, reason FROM diagnostic_rules_off WHERE well_id = %(well)s ORDER BY diagnosis;

-- name: api_counts
-- Sums of now and of the last day that the fleet page shows. What is active and what waits is counted as api_alarms lists
-- it, so that each figure is the length of the list behind it.
SELECT (SELECT count(*) FROM ingest_rejects WHERE received_at > now() - INTERVAL '24 hours') AS rejects_24h,
       (SELECT count(*) FROM diagnostic_results
        WHERE "timestamp" > now() - INTERVAL '24 hours' AND severity <> 'info'
          AND state NOT IN ('suppressed', 'shelved', 'out_of_service')
          AND well_id LIKE ANY (%(wells)s::text[])) AS alarms_24h,
       count(*) FILTER (WHERE state = 'shelved') AS shelved,
       count(*) FILTER (WHERE severity <> 'info' AND state IN ('unacknowledged', 'latched')) AS waiting,
       count(*) FILTER (WHERE is_active AND severity = 'critical') AS critical,
       count(*) FILTER (WHERE is_active AND severity = 'high') AS high,
       count(*) FILTER (WHERE is_active AND severity = 'medium') AS medium,
       count(*) FILTER (WHERE is_active AND severity = 'low') AS low,
       count(*) FILTER (WHERE is_active AND severity = 'info') AS info
FROM (SELECT severity, state, state NOT IN ('suppressed', 'shelved', 'out_of_service') AS is_active
      FROM diagnostic_results
      WHERE cleared_at IS NULL AND well_id LIKE ANY (%(wells)s::text[])) AS open;

-- name: api_well_known
-- Has it ever sent anything, though that may have been dropped?
SELECT EXISTS (SELECT FROM esp_telemetry WHERE well_id = %(well)s)
    OR EXISTS (SELECT FROM well_latest WHERE well_id = %(well)s);

-- name: api_raw
-- Readings as stored, oldest first.
SELECT "timestamp", {columns}
FROM esp_telemetry
WHERE well_id = %(well)s AND "timestamp" >= %(from)s AND "timestamp" < %(to)s
ORDER BY "timestamp"
LIMIT %(limit)s;

-- name: api_range
-- How many readings a range has, counted up to a limit, where they begin and end, and which tables of aggregates this
-- database has and this user may read.
SELECT (SELECT count(*) FROM (
            SELECT FROM esp_telemetry
            WHERE well_id = %(well)s AND "timestamp" >= %(from)s AND "timestamp" < %(to)s
            LIMIT %(limit)s) AS counted),
       (SELECT min("timestamp") FROM esp_telemetry
        WHERE well_id = %(well)s AND "timestamp" >= %(from)s AND "timestamp" < %(to)s),
       (SELECT max("timestamp") FROM esp_telemetry
        WHERE well_id = %(well)s AND "timestamp" >= %(from)s AND "timestamp" < %(to)s),
       coalesce(has_table_privilege(to_regclass('aggregate_days'), 'SELECT'), false),
       coalesce(has_table_privilege(to_regclass('aggregate_hours'), 'SELECT'), false);

-- name: api_buckets
-- Readings in buckets of a width, oldest first.
SELECT date_bin(%(width)s::interval, "timestamp", %(origin)s::timestamptz) AS bucket, count(*), {columns}
FROM esp_telemetry
WHERE well_id = %(well)s AND "timestamp" >= %(from)s AND "timestamp" < %(to)s
GROUP BY 1
ORDER BY 1;

-- name: api_extremes
-- For each bucket its first and last time, and of each signal the lowest and the highest value with their times: arrays
-- are compared element by element, so the least [value, time] is the first of the lowest.
SELECT min("timestamp"), max("timestamp"), {columns}
FROM esp_telemetry
WHERE well_id = %(well)s AND "timestamp" >= %(from)s AND "timestamp" < %(to)s
GROUP BY date_bin(%(width)s::interval, "timestamp", %(origin)s::timestamptz)
ORDER BY 1;

-- name: api_aggregates_span
-- Where a well's aggregates begin and end.
SELECT {text}::text, min(bucket), max(bucket) FROM {table}
WHERE well_id = %(well)s AND bucket >= %(from)s AND bucket < %(to)s;

-- name: api_aggregates
-- Buckets that the lifecycle keeps, gathered into wider ones.
SELECT date_bin(%(width)s::interval, bucket, %(origin)s::timestamptz) AS wide, sum(count)::bigint, {columns}
FROM {table}
WHERE well_id = %(well)s AND bucket >= %(from)s AND bucket < %(to)s
GROUP BY 1
ORDER BY 1;

-- name: api_alarms
-- Occurrences, newest first. Every filter may be NULL.
SELECT d.well_id, d.diagnosis, d."timestamp", d.severity, d.state, d.cleared_at, d.value, d.threshold, d.peak,
       d.occurrences, d.confidence, d.message, d.actions, d.telemetry_snapshot, s.shelved_to, v.verdict, v.cause,
       v.stop_reason
FROM diagnostic_results d
LEFT JOIN alarm_shelves s ON s.well_id = d.well_id AND s.diagnosis = d.diagnosis AND s.shelved_to > now()
LEFT JOIN alarm_verdicts v ON v.well_id = d.well_id AND v.diagnosis = d.diagnosis AND v.raised_at = d."timestamp"
WHERE (%(well)s::text[] IS NULL OR d.well_id = ANY (%(well)s))
  AND d.well_id LIKE ANY (%(wells)s::text[])
  AND (%(severity)s::text[] IS NULL OR d.severity = ANY (%(severity)s))
  AND (%(state)s::text[] IS NULL OR d.state = ANY (%(state)s)
       OR (%(open)s::boolean IS NOT NULL AND (d.cleared_at IS NULL) = %(open)s)
       OR (%(active)s::boolean AND d.cleared_at IS NULL AND d.state NOT IN ('suppressed', 'shelved', 'out_of_service'))
       OR (%(waiting)s::boolean AND d.cleared_at IS NULL AND d.severity <> 'info'
           AND d.state IN ('unacknowledged', 'latched')))
  AND (%(diagnosis)s::text[] IS NULL OR d.diagnosis = ANY (%(diagnosis)s))
  AND (%(verdict)s::text IS NULL OR coalesce(v.verdict, 'none') = %(verdict)s)
  AND (%(from)s::timestamptz IS NULL OR d."timestamp" >= %(from)s)
  AND (%(to)s::timestamptz IS NULL OR d."timestamp" < %(to)s)
  AND (%(after)s::timestamptz IS NULL
       OR (d."timestamp" <= %(after)s
           AND (d."timestamp" < %(after)s OR (d.well_id, d.diagnosis) > (%(after_well)s, %(after_diagnosis)s))))
ORDER BY d."timestamp" DESC, d.well_id, d.diagnosis
LIMIT %(limit)s;

-- name: api_alarm_history
-- What operators did about a well's diagnosis, newest first.
SELECT id, at, well_id, diagnosis, action, by_whom, why, raised_at, shelved_to, detail
FROM alarm_actions
WHERE (%(well)s::text IS NULL OR well_id = %(well)s)
  AND (%(diagnosis)s::text IS NULL OR diagnosis = %(diagnosis)s)
  AND well_id LIKE ANY (%(wells)s::text[])
  AND (%(before)s::bigint IS NULL OR id < %(before)s)
ORDER BY id DESC
LIMIT %(limit)s;

-- name: api_precision
-- How often each rule was right at the wells that the asker may see; the view alarm_precision has it for all.
SELECT diagnosis, count(*) AS judged, count(*) FILTER (WHERE verdict = 'true') AS true_alarms,
       count(*) FILTER (WHERE verdict = 'false') AS false_alarms, count(*) FILTER (WHERE verdict = 'unclear') AS unclear,
       count(*) FILTER (WHERE verdict = 'true')::double precision
           / nullif(count(*) FILTER (WHERE verdict IN ('true', 'false')), 0) AS precision
FROM alarm_verdicts
WHERE well_id LIKE ANY (%(wells)s::text[])
  AND (%(from)s::timestamptz IS NULL OR raised_at >= %(from)s) AND (%(to)s::timestamptz IS NULL OR raised_at < %(to)s)
GROUP BY diagnosis
ORDER BY diagnosis;

-- name: api_losses
-- What stops cost in a range, by well and reason, the most hours first: the part of each stop that lies in it. A rate so
-- small that the product would underflow, which is an error, is none.
SELECT well_id, planned, reason, count(*) AS stops, sum(hours) AS lost_hours,
       sum(CASE WHEN abs(usual_flow_rate) < 1e-290 THEN 0 ELSE hours / 24 * usual_flow_rate END) AS lost_production,
       count(*) FILTER (WHERE usual_flow_rate IS NULL) AS without_rate,
       count(*) FILTER (WHERE started_at IS NULL) AS down
FROM (
    SELECT *, extract(epoch FROM least(coalesce(started_at, %(to)s), %(to)s) - greatest(stopped_at, %(from)s))::double precision
              / 3600 AS hours
    FROM well_stops
    WHERE stopped_at < %(to)s AND (started_at IS NULL OR started_at > %(from)s)
      AND (%(well)s::text[] IS NULL OR well_id = ANY (%(well)s))
      AND well_id LIKE ANY (%(wells)s::text[])
) AS stop
GROUP BY well_id, planned, reason
ORDER BY lost_hours DESC, well_id, planned, reason;

-- name: api_kpis
-- ISA-18.2 over a range: how many alarms, how they spread over 10 minutes, how soon they were acknowledged. Events (info)
-- and what was suppressed or shelved from the start are no alarms.
WITH alarm AS (
    SELECT well_id, diagnosis, "timestamp", severity, cleared_at, occurrences
    FROM diagnostic_results
    WHERE "timestamp" >= %(from)s AND "timestamp" < %(to)s AND severity <> 'info'
      AND state NOT IN ('suppressed', 'shelved', 'out_of_service') AND well_id LIKE ANY (%(wells)s::text[])
),
ten AS (
    SELECT date_bin('10 minutes', "timestamp", %(from)s::timestamptz) AS bucket, count(*) AS alarms
    FROM alarm GROUP BY 1
),
acked AS (
    SELECT extract(epoch FROM min(a.at) - d."timestamp") AS seconds
    FROM alarm d JOIN alarm_actions a
      ON a.well_id = d.well_id AND a.diagnosis = d.diagnosis AND a.action = 'ack' AND a.raised_at = d."timestamp"
    GROUP BY d.well_id, d.diagnosis, d."timestamp"
)
SELECT (SELECT count(*) FROM alarm),
       (SELECT count(DISTINCT well_id) FROM alarm),
       (SELECT coalesce(max(alarms), 0) FROM ten),
       (SELECT count(*) FROM ten WHERE alarms > 10),
       (SELECT count(*) FROM acked),
       (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) FROM acked),
       (SELECT jsonb_object_agg(severity, alarms) FROM (SELECT severity, count(*) AS alarms FROM alarm GROUP BY 1) AS s);

-- name: api_kpi_loudest
-- The ten that came most often.
SELECT well_id, diagnosis, count(*), sum(occurrences)::bigint
FROM diagnostic_results
WHERE "timestamp" >= %(from)s AND "timestamp" < %(to)s AND severity <> 'info'
  AND state NOT IN ('suppressed', 'shelved', 'out_of_service') AND well_id LIKE ANY (%(wells)s::text[])
GROUP BY 1, 2
ORDER BY 3 DESC, 1, 2
LIMIT 10;

-- name: api_kpi_chattering
-- Three or more times in a minute: counted by the occurrences that the row stands for.
SELECT well_id, diagnosis, max(times)
FROM (
    SELECT well_id, diagnosis,
           sum(occurrences / greatest(extract(epoch FROM coalesce(cleared_at, now()) - "timestamp") / 60, 1)) AS times
    FROM diagnostic_results
    WHERE "timestamp" >= %(from)s AND "timestamp" < %(to)s AND severity <> 'info'
      AND state NOT IN ('suppressed', 'shelved', 'out_of_service') AND well_id LIKE ANY (%(wells)s::text[])
    GROUP BY well_id, diagnosis, date_trunc('minute', "timestamp")
) AS minute
WHERE times >= 3
GROUP BY 1, 2
ORDER BY 3 DESC, 1, 2
LIMIT 100;

-- name: api_kpi_stale
-- Open for more than a day as the range ends, and not held back.
SELECT well_id, diagnosis, "timestamp", severity
FROM diagnostic_results
WHERE "timestamp" < %(to)s::timestamptz - INTERVAL '24 hours' AND "timestamp" >= %(oldest)s
  AND (cleared_at IS NULL OR cleared_at >= %(to)s)
  AND severity <> 'info' AND state NOT IN ('suppressed', 'shelved', 'out_of_service')
  AND well_id LIKE ANY (%(wells)s::text[])
ORDER BY "timestamp", well_id, diagnosis
LIMIT 100;

-- name: api_rejects
-- Newest first. The well of a reject is the second level of its topic, so that who may see some wells sees their rejects.
SELECT received_at, digest, item, topic, reason, detail, payload, redelivered, replayed_at, replay_outcome
FROM ingest_rejects
WHERE (%(all_wells)s::boolean OR split_part(topic, '/', 2) LIKE ANY (%(wells)s::text[]))
  AND (%(reason)s::text[] IS NULL OR reason = ANY (%(reason)s))
  AND (%(topic)s::text IS NULL OR topic LIKE %(topic)s)
  AND (%(from)s::timestamptz IS NULL OR received_at >= %(from)s)
  AND (%(to)s::timestamptz IS NULL OR received_at < %(to)s)
  AND (%(after)s::timestamptz IS NULL
       OR (received_at <= %(after)s AND (received_at < %(after)s OR digest > %(after_digest)s::uuid)))
ORDER BY received_at DESC, digest
LIMIT %(limit)s;

-- name: api_live_is_kept
-- Whether the newest readings are in well_newest now, with no mark that they are not and of few enough wells to be
-- written within seconds.
SELECT NOT EXISTS (SELECT FROM well_newest_stale)
   AND (SELECT count(*) <= %(few)s FROM (SELECT FROM well_newest LIMIT %(few)s + 1) AS n);

-- name: api_live_kept
-- For the live feed: the newest reading of each well that sent something of late. It costs by the wells.
SELECT well_id, "timestamp", :signals, received_at
FROM well_newest
WHERE received_at > %(after)s AND "timestamp" > %(oldest)s;

-- name: api_live_readings
-- The same out of the readings; it costs by what was received. The bound on event time leaves out old chunks; what is
-- older than two days is a backlog and not news.
SELECT DISTINCT ON (well_id)
       well_id, "timestamp", :signals, received_at
FROM esp_telemetry
WHERE received_at > %(after)s AND "timestamp" > %(oldest)s
ORDER BY well_id, "timestamp" DESC;

-- name: api_live_alarms
-- For the live feed: all that is open, and what ended or was acted upon by an operator since.
SELECT d.well_id, d.diagnosis, d."timestamp", d.severity, d.state, d.cleared_at, d.value, d.threshold, d.peak,
       d.occurrences, d.message
FROM diagnostic_results d
WHERE d.cleared_at IS NULL;

-- name: api_live_ended
-- For the live feed: occurrences that are no longer among the open ones.
SELECT d.well_id, d.diagnosis, d."timestamp", d.severity, d.state, d.cleared_at, d.value, d.threshold, d.peak,
       d.occurrences, d.message
FROM unnest(%(wells)s::text[], %(diagnoses)s::text[], %(times)s::timestamptz[]) AS k (well_id, diagnosis, at)
JOIN diagnostic_results d ON d.well_id = k.well_id AND d.diagnosis = k.diagnosis AND d."timestamp" = k.at;

-- name: api_live_actions
-- For the live feed: what operators did since.
SELECT a.id, a.well_id, a.diagnosis, a.action, a.by_whom, a.why, a.at, a.raised_at, a.shelved_to
FROM alarm_actions a WHERE a.id > %(after)s ORDER BY a.id LIMIT 1000;

-- name: set_verdict
-- The last word on an occurrence. Nothing where there is no such occurrence.
INSERT INTO alarm_verdicts (well_id, diagnosis, raised_at, verdict, cause, stop_reason, severity, by_whom, why)
SELECT well_id, diagnosis, "timestamp", %(verdict)s, %(cause)s, %(stop_reason)s, severity, %(by)s, %(why)s
FROM diagnostic_results
WHERE well_id = %(well)s AND diagnosis = %(diagnosis)s AND "timestamp" = %(raised_at)s
ON CONFLICT (well_id, diagnosis, raised_at) DO UPDATE
SET verdict = excluded.verdict, cause = excluded.cause, stop_reason = excluded.stop_reason,
    severity = excluded.severity, by_whom = excluded.by_whom, why = excluded.why, at = now();

-- name: occurrence
-- One by its key.
SELECT "timestamp", state, severity, message
FROM diagnostic_results
WHERE well_id = %(well)s AND diagnosis = %(diagnosis)s AND "timestamp" = %(raised_at)s;

-- name: api_archive
-- What the lifecycle remembers of each table and day, newest first. rows_database is what the day held when it was looked
-- at last.
SELECT relation AS "table", day, CASE WHEN dropped_at IS NULL THEN held_rows ELSE 0 END AS rows_database,
       rows AS rows_archived, verified_at, dropped_at, bytes, problem
FROM archive_days
WHERE %(before)s::date IS NULL OR day < %(before)s OR (day = %(before)s AND relation > %(after)s)
ORDER BY day DESC, relation
LIMIT %(limit)s;
