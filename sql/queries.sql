-- Every statement that the program sends, but for SET and transaction control. A block a statement:
--   "-- name: NAME" on a line of its own, then what it is for, then the statement.
-- Parameters are psycopg's %s (by position) or %(name)s; :NAME_lock is the key of an advisory lock, of
-- esp_ingest/store/locks.py. esp_ingest/store/queries.py loads this file.

-- name: session_identity
-- Which server process this is, and whether the database can hold our text.
SELECT pg_backend_pid(), current_setting('server_encoding') = 'UTF8';

-- name: session_settings
-- What the meaning of a value, the place of a row, durability and waiting times depend on, for the session or, behind a
-- connection pooler, for the transaction (local). Of synchronous_commit a setting that asks for more stays. Backfill into
-- compressed chunks trips TimescaleDB's limit (SQLSTATE 53400), which exists only in some editions and versions.
SELECT set_config('client_encoding', 'UTF8', %(local)s),
       set_config('DateStyle', 'ISO, MDY', %(local)s),
       set_config('IntervalStyle', 'postgres', %(local)s),
       set_config('TimeZone', 'UTC', %(local)s),
       set_config('search_path', quote_ident(%(schema)s), %(local)s),
       set_config('bytea_output', 'hex', %(local)s),
       set_config('extra_float_digits', '1', %(local)s),
       set_config('standard_conforming_strings', 'on', %(local)s),
       set_config('array_nulls', 'on', %(local)s),
       set_config('transform_null_equals', 'off', %(local)s),
       set_config('jit', 'off', %(local)s),
       set_config('statement_timeout', %(statement_timeout)s, %(local)s),
       set_config('lock_timeout', %(lock_timeout)s, %(local)s),
       CASE WHEN current_setting('synchronous_commit') NOT IN ('on', 'remote_write', 'remote_apply')
            THEN set_config('synchronous_commit', 'on', %(local)s) END,
       CASE WHEN current_setting('timescaledb.max_tuples_decompressed_per_dml_transaction', true) IS NOT NULL
            THEN set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', %(local)s) END;

-- name: capabilities
-- What this database is. The license setting exists only where the extension is loaded.
SELECT current_setting('server_version_num')::int,
       coalesce((SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'), ''),
       coalesce(current_setting('timescaledb.license', true), ''),
       current_setting('fsync') = 'on';

-- name: extension_available
-- Does this server bring TimescaleDB that this database does not have yet?
SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb' AND installed_version IS NULL;

-- name: create_extension
-- Where the server brings it and this user may.
CREATE EXTENSION IF NOT EXISTS timescaledb;

-- name: migration_lock
-- One migration at a time, until the end of the transaction.
SELECT pg_advisory_xact_lock(:migration_lock);

-- name: create_ledger
-- What has been applied. A migration that a feature asks for is recorded under that feature's name.
CREATE TABLE IF NOT EXISTS esp_ingest_migrations (
    number     integer NOT NULL,
    feature    text NOT NULL,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_by text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    works_with integer,
    PRIMARY KEY (number, feature)
);

-- name: widen_ledger
-- Ledgers of earlier programs lack the column. Asked first, since ALTER TABLE takes the lock even where it does nothing.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'esp_ingest_migrations'::regclass AND attname = 'works_with') THEN
        ALTER TABLE esp_ingest_migrations ADD COLUMN works_with integer;
    END IF;
END $$;

-- name: ledger_place
-- The schema that this session works in, whether it is there, whether this user may use it, whether the ledger is in it and
-- this user may read it, which other schemas have one, and who this user is.
SELECT current_setting('search_path'), s.found IS NOT NULL, coalesce(has_schema_privilege(s.found, 'USAGE'), false),
       to_regclass('esp_ingest_migrations') IS NOT NULL,
       coalesce(has_table_privilege(to_regclass('esp_ingest_migrations'), 'SELECT'), true),
       ARRAY(SELECT quote_ident(n.nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relname = 'esp_ingest_migrations' AND c.relkind = 'r' ORDER BY 1),
       quote_ident(current_user)
FROM (SELECT to_regnamespace(current_setting('search_path'))::oid) AS s (found);

-- name: reach_extension
-- For a migration: TimescaleDB's functions, where the extension is in another schema.
SELECT set_config('search_path', current_setting('search_path') || ', ' || quote_ident(n.nspname), true)
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'timescaledb' AND quote_ident(n.nspname) <> current_setting('search_path');

-- name: read_ledger
-- Which migrations this database has. The last column may be missing still.
SELECT number, feature, checksum, (to_jsonb(m) ->> 'works_with')::integer FROM esp_ingest_migrations m;

-- name: obstacles
-- What keeps this session from storing readings and rejects: a standby, a database that only reads, and each right that the
-- daemon needs and this user lacks, as the GRANT that gives it. Then what the diagnostics lack, without which readings are
-- stored: rights, and tables that are gone. sql/roles/writer.sql has the same list.
WITH needed (relation, privileges, is_for_readings) AS (
    VALUES ('esp_ingest_migrations', '{SELECT}'::text[], true),
           ('esp_telemetry', '{SELECT,INSERT}', true),
           ('ingest_rejects', '{SELECT,INSERT}', true),
           ('mqtt_sessions', '{SELECT,INSERT,UPDATE}', true),
           ('reject_origins', '{SELECT,INSERT,UPDATE,DELETE}', true),
           ('diagnostic_results', '{SELECT,INSERT,UPDATE}', false),
           ('diagnostic_state', '{SELECT,INSERT,UPDATE}', false),
           ('diagnostics_cursor', '{SELECT,INSERT,UPDATE}', false),
           ('diagnostics_outbox', '{SELECT,INSERT,UPDATE,DELETE}', false),
           ('diagnostics_publisher', '{SELECT,INSERT,UPDATE}', false),
           ('share_group_members', '{SELECT,INSERT,UPDATE,DELETE}', false),
           ('alarm_actions', '{SELECT}', false),
           ('alarm_shelves', '{SELECT}', false),
           ('alarm_limits_history', '{SELECT,INSERT}', false)
),
lacking AS (
    SELECT relation, is_for_readings,
           format('GRANT %s ON %I TO %I', string_agg(privilege, ', ' ORDER BY place), relation, current_user) AS mended_by
    FROM needed, unnest(privileges) WITH ORDINALITY AS each (privilege, place)
    WHERE NOT has_table_privilege(to_regclass(relation), privilege)
    GROUP BY relation, is_for_readings
)
SELECT pg_is_in_recovery(),
       current_setting('transaction_read_only')::boolean,
       ARRAY(SELECT mended_by FROM lacking WHERE is_for_readings ORDER BY relation)
       || CASE WHEN has_database_privilege(current_database(), 'TEMPORARY') THEN '{}'::text[]
               ELSE ARRAY[format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), current_user)] END,
       ARRAY(SELECT mended_by FROM lacking WHERE NOT is_for_readings ORDER BY relation),
       ARRAY(SELECT relation FROM needed
             WHERE NOT is_for_readings AND to_regclass(relation) IS NULL ORDER BY relation);

-- name: record_migration
-- In the transaction of the migration itself.
INSERT INTO esp_ingest_migrations (number, feature, name, checksum, applied_by, works_with)
VALUES (%s, %s, %s, %s, %s, %s);

-- name: ping
-- Is the connection alive?
SELECT 1;

-- name: copy_telemetry
-- Fresh readings, straight into the table. Which columns, esp_ingest/store/write/copy_format.py says.
COPY esp_telemetry ({columns}) FROM STDIN (FORMAT binary);

-- name: columns_with_default
-- Columns that somebody gave a default: where no reading of a batch has a value for one, it is sent all the same, as NULL.
SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass('esp_telemetry') AND atthasdef AND NOT attisdropped;

-- name: create_staging
-- Where suspect rows wait for ON CONFLICT, which COPY does not know. Kept for the life of the connection: creating it in
-- every transaction would bloat the catalogs.
CREATE TEMPORARY TABLE IF NOT EXISTS esp_ingest_staging (
    LIKE esp_telemetry,
    place bigint GENERATED ALWAYS AS IDENTITY
) ON COMMIT DELETE ROWS;

-- name: create_checked_staging
-- In its place, for a batch with a row at fault: what a constraint of the table refuses is refused here already, where
-- it costs no chunk that is created and rolled back again. Anew each time, as an operator may change constraints.
DROP TABLE IF EXISTS pg_temp.esp_ingest_staging;
CREATE TEMPORARY TABLE esp_ingest_staging (
    LIKE esp_telemetry INCLUDING CONSTRAINTS,
    place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY
) ON COMMIT DROP;

-- name: copy_staging
-- Suspect readings, as by copy_telemetry.
COPY esp_ingest_staging ({columns}) FROM STDIN (FORMAT binary);

-- name: insert_staged
-- The first one stored stays. Without a conflict target: an index that an operator added counts as well.
INSERT INTO esp_telemetry ("timestamp", received_at, :signals, well_id, extra, quality)
SELECT "timestamp", received_at, :signals, well_id, extra, quality
FROM esp_ingest_staging
ON CONFLICT DO NOTHING;

-- name: insert_staged_range
-- As insert_staged, for a batch that is being halved.
INSERT INTO esp_telemetry ("timestamp", received_at, :signals, well_id, extra, quality)
SELECT "timestamp", received_at, :signals, well_id, extra, quality
FROM esp_ingest_staging
WHERE place BETWEEN %s AND %s
ORDER BY place
ON CONFLICT DO NOTHING;

-- name: staged_places
-- The staged rows in the order in which they were sent.
SELECT place FROM esp_ingest_staging ORDER BY place;

-- name: unstage
-- Rows at fault: they were not inserted, and are not to be compared.
DELETE FROM esp_ingest_staging WHERE place = ANY (%s::bigint[]);

-- name: staged_conflicts
-- Staged rows that are not in the table as they are: what stands under their key says something else. Numbers are
-- compared by their bits (*=). The span of time lets the planner leave out all other chunks, LIMIT keeps it from joining
-- the whole table.
SELECT s.place
FROM esp_ingest_staging s
LEFT JOIN LATERAL (
    SELECT * FROM esp_telemetry e
    WHERE e.well_id = s.well_id AND e."timestamp" = s."timestamp" AND e."timestamp" BETWEEN %s AND %s
    LIMIT 1
) t ON true
WHERE t.well_id IS NULL
   OR NOT ROW (:signals_of_t)::record
          *= ROW (:signals_of_s)::record
   OR t.extra IS DISTINCT FROM s.extra
   OR t.quality IS DISTINCT FROM s.quality
ORDER BY s.place;

-- name: newest_of_wells
-- The newest stored timestamp of each well, one probe of the primary key each.
SELECT w.well_id, (extract(epoch FROM t."timestamp") * 1000000)::bigint
FROM unnest(%s::text[]) AS w (well_id)
CROSS JOIN LATERAL (
    SELECT "timestamp" FROM esp_telemetry e
    WHERE e.well_id = w.well_id AND e."timestamp" > '-infinity' AND e."timestamp" < 'infinity'
    ORDER BY e."timestamp" DESC LIMIT 1
) AS t;

-- name: count_messages
-- Counts the messages of a session, and holds its row until the commit: whoever else has this session waits.
INSERT INTO mqtt_sessions AS m (session, messages) VALUES (%(session)s, %(messages)s)
ON CONFLICT (session) DO UPDATE SET messages = m.messages + excluded.messages
RETURNING messages;

-- name: be_brief
-- What follows in this transaction must not wait long for a lock.
SET LOCAL lock_timeout = '1s';

-- name: need_not_be_durable
-- What follows in this transaction is made good after a crash.
SET LOCAL synchronous_commit = off;

-- name: newest_rights
-- What this user lacks to keep the newest reading of each well, as the GRANTs that give it; empty if nothing.
WITH needed (relation, privileges) AS (
    VALUES ('well_newest', '{SELECT,INSERT,UPDATE,DELETE}'::text[]),
           ('well_newest_now', '{SELECT}'),
           ('well_newest_stale', '{SELECT,INSERT,UPDATE,DELETE}')
),
lacking AS (
    SELECT format('GRANT %s ON %I TO %I', string_agg(privilege, ', ' ORDER BY place), relation, current_user) AS mended_by
    FROM needed, unnest(privileges) WITH ORDINALITY AS each (privilege, place)
    WHERE NOT coalesce(has_table_privilege(to_regclass(relation), privilege), false)
    GROUP BY relation
)
SELECT coalesce(string_agg(mended_by, '; ' ORDER BY mended_by), '') FROM lacking;

-- name: keeps_well_newest
-- "on": this session keeps well_newest itself, so its statements leave no mark.
SELECT set_config('esp_ingest.keeps_well_newest', %(keeps)s, false);

-- name: stage_newest_of_wells
-- The newest readings of these wells, beside those that were copied.
INSERT INTO esp_ingest_staging ("timestamp", received_at, :signals, well_id, extra, quality)
SELECT latest.*
FROM unnest(%s::text[]) AS well (well_id)
CROSS JOIN LATERAL (
    SELECT "timestamp", received_at, :signals, well_id, extra, quality
    FROM esp_telemetry t WHERE t.well_id = well.well_id ORDER BY t."timestamp" DESC LIMIT 1
) AS latest;

-- name: keep_well_newest
-- What is staged, where it is newer. In the order of wells, so that two daemons wait for each other and never both.
INSERT INTO well_newest AS n ("timestamp", received_at, :signals, well_id, extra, quality)
SELECT DISTINCT ON (well_id) "timestamp", received_at, :signals, well_id, extra, quality
FROM esp_ingest_staging
ORDER BY well_id, "timestamp" DESC
ON CONFLICT (well_id) DO UPDATE
SET "timestamp" = excluded."timestamp", received_at = excluded.received_at, :signals_as_excluded, extra = excluded.extra,
    quality = excluded.quality
WHERE excluded."timestamp" > n."timestamp";

-- name: mark_well_newest_stale
-- What was kept by a process that may have been killed.
INSERT INTO well_newest_stale DEFAULT VALUES;

-- name: well_newest_is_stale
-- Is there a mark?
SELECT EXISTS (SELECT FROM well_newest_stale);

-- name: lock_well_newest
-- To write to it, unless another session has it to itself.
LOCK TABLE well_newest IN ROW EXCLUSIVE MODE NOWAIT;

-- name: lock_well_newest_to_refresh
-- To make it right again. Taken first, since two sessions that write and then want more would wait for each other.
LOCK TABLE well_newest IN SHARE ROW EXCLUSIVE MODE NOWAIT;

-- name: refresh_well_newest
-- Where something has written readings that did not keep the newest ones.
SELECT refresh_well_newest();

-- name: renew_session
-- A daemon with this session writes here now.
INSERT INTO mqtt_sessions (session, topic_filter, seen_at) VALUES (%(session)s, %(topic_filter)s, now())
ON CONFLICT (session) DO UPDATE SET topic_filter = excluded.topic_filter, seen_at = excluded.seen_at;

-- name: end_session
-- It no longer does.
UPDATE mqtt_sessions SET seen_at = NULL WHERE session = %(session)s;

-- name: sessions_present
-- Who else writes here now, and how many seconds ago it said so.
SELECT session, topic_filter, extract(epoch FROM now() - seen_at)::integer
FROM mqtt_sessions
WHERE session <> %(session)s AND seen_at > now() - INTERVAL '3 minutes'
ORDER BY session;

-- name: forget_origins
-- What is too far back to be delivered again. Its packet id may soon belong to another message.
DELETE FROM reject_origins WHERE session = %(session)s AND place < %(oldest)s;

-- name: create_staging_rejects
-- As create_staging, for rejects; since says of one that is marked DUP which connections may have brought it before.
CREATE TEMPORARY TABLE IF NOT EXISTS esp_ingest_staged_rejects (LIKE ingest_rejects, since bigint NOT NULL)
ON COMMIT DELETE ROWS;

-- name: copy_staging_rejects
-- Rejects of one connection. The columns are REJECT_COLUMNS of esp_ingest/store/write/copy_format.py.
COPY esp_ingest_staged_rejects (received_at, digest, item, topic, topic_bytes, reason, detail, payload, redelivered,
                                 connection, packet_id, since)
FROM STDIN (FORMAT binary);

-- name: insert_staged_rejects
-- But for what was delivered and stored before: the rule stands in esp_ingest/store/write/redelivery.py. Where no connection is
-- known (-1), the content decides. ON CONFLICT is for a batch written again.
INSERT INTO ingest_rejects (received_at, digest, item, topic, topic_bytes, reason, detail, payload, redelivered,
                            connection, packet_id)
SELECT received_at, digest, item, topic, topic_bytes, reason, detail, payload, redelivered, connection, packet_id
FROM esp_ingest_staged_rejects s
WHERE NOT EXISTS (
        SELECT FROM reject_origins o
        WHERE o.session = %(session)s AND o.packet_id = s.packet_id AND o.digest = s.digest
          AND (s.since > 0 AND o.connection >= s.since AND o.connection < s.connection
               OR o.since > 0 AND s.connection >= o.since AND s.connection < o.connection)
    )
  AND NOT (s.connection = -1 AND s.redelivered
           AND EXISTS (SELECT FROM ingest_rejects r WHERE r.digest = s.digest))
ON CONFLICT DO NOTHING
RETURNING reason;

-- name: keep_origins
-- What may be delivered again from now on, with the last connection that brought it.
INSERT INTO reject_origins AS o (session, packet_id, digest, connection, since, place)
SELECT DISTINCT ON (packet_id, digest) %(session)s, packet_id, digest, connection, since, %(place)s
FROM esp_ingest_staged_rejects
WHERE packet_id > 0 AND connection >= 0
ON CONFLICT (session, packet_id, digest) DO UPDATE
SET connection = excluded.connection, since = excluded.since, place = excluded.place
WHERE excluded.connection >= o.connection;

-- name: empty_staging_rejects
-- For the next connection's.
TRUNCATE esp_ingest_staged_rejects;

-- name: begin_findings
-- Diagnostics are behind a savepoint, so that what their tables refuse costs no reading, and wait for a lock less long than
-- readings do, which come with the same transaction.
SAVEPOINT findings;
SET LOCAL lock_timeout = '2s';

-- name: undo_findings
-- They were refused; the transaction goes on, with the lock_timeout of before.
ROLLBACK TO SAVEPOINT findings;
RELEASE SAVEPOINT findings;

-- name: end_findings
-- They are stored with the transaction.
RELEASE SAVEPOINT findings;

-- name: upsert_diagnostic
-- The present state of an occurrence, but for what an operator did to it. Writing the same again touches nothing. A
-- change of severity, state or end goes to the outbox, and so does a reminder, for which an acknowledgement counts no more.
WITH old AS (
    SELECT severity, state, cleared_at FROM diagnostic_results
    WHERE well_id = %(well_id)s AND diagnosis = %(diagnosis)s AND "timestamp" = %(raised_at)s
),
shelf AS (
    SELECT EXISTS (
        SELECT FROM alarm_shelves
        WHERE well_id = %(well_id)s AND diagnosis = %(diagnosis)s AND shelved_to > now()
    ) AS shelved
),
stored AS (
    INSERT INTO diagnostic_results AS d
        (well_id, diagnosis, "timestamp", severity, state, cleared_at, value, threshold, peak, occurrences, confidence,
         message, actions, telemetry_snapshot)
    SELECT %(well_id)s, %(diagnosis)s, %(raised_at)s::timestamptz, %(severity)s,
           alarm_state(NULL, NULL, NULL, %(state)s, %(severity)s, %(cleared_at)s::timestamptz, shelved),
           %(cleared_at)s::timestamptz, %(value)s::double precision, %(threshold)s::double precision,
           %(peak)s::double precision, %(occurrences)s::integer, %(confidence)s::double precision, %(message)s,
           %(actions)s::text::jsonb, %(snapshot)s::text::jsonb
    FROM shelf
    ON CONFLICT (well_id, diagnosis, "timestamp") DO UPDATE SET
        severity = excluded.severity,
        state = alarm_state(CASE WHEN NOT %(reminded)s THEN d.state END, d.severity, d.cleared_at,
                            excluded.state, excluded.severity, excluded.cleared_at, false),
        cleared_at = excluded.cleared_at, value = excluded.value, threshold = excluded.threshold,
        peak = coalesce(excluded.peak, d.peak), occurrences = excluded.occurrences, confidence = excluded.confidence,
        message = excluded.message, actions = excluded.actions, telemetry_snapshot = excluded.telemetry_snapshot
    WHERE (d.severity, d.state, d.cleared_at, d.value, d.threshold, d.peak, d.occurrences, d.confidence, d.message,
           d.actions, d.telemetry_snapshot)
       IS DISTINCT FROM
          (excluded.severity,
           alarm_state(CASE WHEN NOT %(reminded)s THEN d.state END, d.severity, d.cleared_at,
                       excluded.state, excluded.severity, excluded.cleared_at, false),
           excluded.cleared_at, excluded.value, excluded.threshold, coalesce(excluded.peak, d.peak),
           excluded.occurrences, excluded.confidence, excluded.message, excluded.actions, excluded.telemetry_snapshot)
    RETURNING d.well_id, d.severity, d.state, d.cleared_at, diagnostics_message(d) AS occurrence
)
INSERT INTO diagnostics_outbox (well_id, occurrence)
SELECT stored.well_id, stored.occurrence
FROM stored LEFT JOIN old ON true
WHERE %(publish)s
  AND (old.state IS NULL OR %(reminded)s
       OR (old.severity, old.state, old.cleared_at)
          IS DISTINCT FROM (stored.severity, stored.state, stored.cleared_at));

-- name: upsert_states
-- Checkpoints of a few wells, in the transaction of a batch. Binary (%b) where text would be escaped byte for byte.
INSERT INTO diagnostic_state (well_id, event_time, state, rules_off)
SELECT well_id, event_time, state, rules_off::jsonb
FROM unnest(%(wells)b::text[], %(times)s::timestamptz[], %(states)b::bytea[], %(off)b::text[])
     AS c (well_id, event_time, state, rules_off)
ON CONFLICT (well_id) DO UPDATE SET
    event_time = excluded.event_time, saved_at = now(), state = excluded.state, rules_off = excluded.rules_off;

-- name: states_of_wells
-- Checkpoints of these wells.
SELECT well_id, (extract(epoch FROM event_time) * 1000000)::bigint, state
FROM diagnostic_state
WHERE well_id = ANY (%s::text[]);

-- name: wells_with_state
-- The next wells that have a checkpoint, in order: a page of them.
SELECT well_id FROM diagnostic_state WHERE well_id > %s ORDER BY well_id LIMIT %s;

-- name: readings_after
-- Replay: what these wells sent after their checkpoints, in the order received, at most a number of the newest each.
-- Ordered by event time within a microsecond of arrival, since nothing tells how an array was ordered.
SELECT w.well_id, (extract(epoch FROM t."timestamp") * 1000000)::bigint,
       (extract(epoch FROM t.received_at) * 1000000)::bigint,
       :signals_of_t, t.extra::text, t.quality::text
FROM unnest(%(wells)s::text[], %(after)s::timestamptz[]) AS w (well_id, after)
CROSS JOIN LATERAL (
    SELECT * FROM esp_telemetry e
    WHERE e.well_id = w.well_id AND e."timestamp" > w.after AND e."timestamp" < '10000-01-01Z'
      AND isfinite(e.received_at)
      AND (%(until)s::timestamptz IS NULL OR e.received_at <= %(until)s)
    ORDER BY e."timestamp" DESC
    LIMIT %(limit)s
) AS t
ORDER BY t.received_at, t."timestamp";

-- name: open_occurrences
-- What the table says is open at these wells, and whether the last verdict of an operator on it is that it is false.
SELECT well_id, diagnosis, (extract(epoch FROM "timestamp") * 1000000)::bigint, severity, state, value, threshold, peak,
       occurrences, confidence, message, actions::text, telemetry_snapshot::text,
       coalesce((SELECT a.detail ->> 'verdict' = 'false' FROM alarm_actions a
                 WHERE a.well_id = d.well_id AND a.diagnosis = d.diagnosis AND a.action = 'verdict'
                   AND a.raised_at = d."timestamp"
                 ORDER BY a.id DESC LIMIT 1), false)
FROM diagnostic_results d
WHERE well_id = ANY (%s::text[]) AND cleared_at IS NULL
  AND "timestamp" >= '0001-01-01Z' AND "timestamp" < '10000-01-01Z';

-- name: open_anywhere
-- For metrics: what is open in the table, at any well, up to a number of them.
SELECT well_id, diagnosis, severity FROM diagnostic_results WHERE cleared_at IS NULL LIMIT %s;

-- name: newest_action
-- Where to begin following: what came before stands in the tables.
SELECT coalesce(max(id), 0) FROM alarm_actions;

-- name: actions_after
-- What operators did since.
SELECT id, well_id, diagnosis, action,
       CASE WHEN isfinite(raised_at) THEN (extract(epoch FROM raised_at) * 1000000)::bigint END,
       CASE WHEN shelved_to IS NOT NULL
            THEN (extract(epoch FROM least(greatest(shelved_to, '0001-01-01Z'), '9999-12-31Z')) * 1000000)::bigint END,
       detail ->> 'verdict'
FROM alarm_actions WHERE id > %s ORDER BY id;

-- name: shelves_of_wells
-- What is shelved at these wells.
SELECT well_id, diagnosis, (extract(epoch FROM least(shelved_to, '9999-12-31Z')) * 1000000)::bigint
FROM alarm_shelves WHERE well_id = ANY (%s::text[]) AND shelved_to > now();

-- name: alarm_gauges
-- For metrics: stale, shelved and unacknowledged.
SELECT (SELECT count(*) FROM diagnostic_results
        WHERE cleared_at IS NULL AND severity <> 'info' AND "timestamp" < now() - INTERVAL '24 hours'),
       (SELECT count(*) FROM alarm_shelves WHERE shelved_to > now()),
       (SELECT count(*) FROM diagnostic_results
        WHERE cleared_at IS NULL AND severity <> 'info' AND state IN ('unacknowledged', 'latched'));

-- name: lock_alarm_actions
-- One command at a time, so that ids become visible in order.
LOCK TABLE alarm_actions IN SHARE ROW EXCLUSIVE MODE;

-- name: acknowledge
-- Open ones become acknowledged, returned ones normal; a latched one is ended by the daemon, which knows when it
-- returned. Gives what was acknowledged. With a time only the occurrence that was raised then.
UPDATE diagnostic_results AS d
SET state = CASE WHEN cleared_at IS NULL THEN 'acknowledged' ELSE 'normal' END
WHERE well_id = %(well)s AND diagnosis = %(diagnosis)s
  AND state IN ('unacknowledged', 'latched', 'returned-unacknowledged')
  AND (%(raised_at)s::timestamptz IS NULL OR "timestamp" = %(raised_at)s)
RETURNING "timestamp", state, severity, message;

-- name: set_shelved
-- The open occurrence shows at once that it is shelved, or no longer.
UPDATE diagnostic_results
SET state = %(state)s
WHERE well_id = %(well)s AND diagnosis = %(diagnosis)s AND cleared_at IS NULL AND state = ANY (%(from)s::text[])
RETURNING "timestamp", state, severity, message;

-- name: end_shelvings
-- Whose time is over: heard again, even at a well that sends nothing.
WITH heard AS (
    UPDATE diagnostic_results d
    SET state = 'unacknowledged'
    WHERE d.cleared_at IS NULL AND d.state = 'shelved'
      AND NOT EXISTS (SELECT FROM alarm_shelves s
                      WHERE s.well_id = d.well_id AND s.diagnosis = d.diagnosis AND s.shelved_to > now())
    RETURNING d.well_id, diagnostics_message(d) AS occurrence
)
INSERT INTO diagnostics_outbox (well_id, occurrence)
SELECT well_id, occurrence FROM heard WHERE %s;

-- name: shelve
-- A later shelving replaces an earlier one.
INSERT INTO alarm_shelves (well_id, diagnosis, shelved_to, by_whom, why)
VALUES (%(well)s, %(diagnosis)s, %(to)s, %(by)s, %(why)s)
ON CONFLICT (well_id, diagnosis) DO UPDATE
SET shelved_to = excluded.shelved_to, by_whom = excluded.by_whom, why = excluded.why;

-- name: unshelve
-- Gives a row where something was shelved.
DELETE FROM alarm_shelves
WHERE well_id = %(well)s AND diagnosis = %(diagnosis)s AND shelved_to > now()
RETURNING shelved_to;

-- name: record_action
-- Who, what, why.
INSERT INTO alarm_actions (well_id, diagnosis, action, by_whom, why, raised_at, shelved_to, detail)
VALUES (%(well)s, %(diagnosis)s, %(action)s, %(by)s, %(why)s, %(raised_at)s, %(to)s, %(detail)s::text::jsonb);

-- name: announce
-- A change that an operator made, on its way to the broker.
INSERT INTO diagnostics_outbox (well_id, occurrence)
SELECT well_id, diagnostics_message(d) FROM diagnostic_results d
WHERE well_id = %(well)s AND diagnosis = %(diagnosis)s AND "timestamp" = ANY (%(raised)s::timestamptz[]);

-- name: knows_alarm
-- Is there such a well, though its readings may have been dropped, and has it ever had this diagnosis?
SELECT EXISTS (SELECT FROM esp_telemetry WHERE well_id = %(well)s)
           OR EXISTS (SELECT FROM well_latest WHERE well_id = %(well)s),
       EXISTS (SELECT FROM diagnostic_results WHERE well_id = %(well)s AND diagnosis = %(diagnosis)s);

-- name: list_alarms
-- Open ones, the most severe first; on request cleared ones too, the newest first within a severity.
SELECT d.well_id, d.diagnosis, d."timestamp", d.severity, d.state, d.cleared_at, d.value, d.threshold, d.peak,
       d.occurrences, d.confidence, d.message, d.actions, d.telemetry_snapshot, s.shelved_to, s.by_whom, s.why
FROM diagnostic_results d
LEFT JOIN alarm_shelves s ON s.well_id = d.well_id AND s.diagnosis = d.diagnosis AND s.shelved_to > now()
WHERE (%(well)s::text IS NULL OR d.well_id = %(well)s)
  AND (%(all)s::boolean
       OR (d.state IN ('unacknowledged', 'acknowledged', 'latched', 'returned-unacknowledged')
           AND d.severity <> 'info'))
ORDER BY array_position(ARRAY['critical', 'high', 'medium', 'low', 'info'], d.severity), d."timestamp" DESC, d.well_id,
         d.diagnosis
LIMIT 1000;

-- name: newest_limits
-- What each scope had last.
SELECT DISTINCT ON (scope) scope, settings::text FROM alarm_limits_history ORDER BY scope, since DESC;

-- name: record_limits
-- A change; two daemons that start in one moment write it once.
INSERT INTO alarm_limits_history (scope, settings, rules) VALUES (%s, %s::text::jsonb, %s) ON CONFLICT DO NOTHING;

-- name: take_publishing_turn
-- One daemon publishes at a time, or an older state could be the last one that the broker retains. The turn lasts for
-- some seconds and is renewed by each look. A row and not an advisory lock: no transaction stays open while the publisher
-- waits for the broker, and it holds behind a pooler. Gives a row to who has the turn.
INSERT INTO diagnostics_publisher AS p (holder, expires_at)
VALUES (%(holder)s, now() + make_interval(secs => %(seconds)s))
ON CONFLICT (only_row) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
WHERE p.holder = excluded.holder OR p.expires_at < now()
RETURNING holder;

-- name: end_publishing_turn
-- At the end of the process, so that another goes on at once.
UPDATE diagnostics_publisher SET expires_at = '-infinity' WHERE holder = %s;

-- name: outbox_size
-- For the metrics: what waits to be published, and how much of it the broker has refused.
SELECT count(*) FILTER (WHERE retry_at IS DISTINCT FROM 'infinity'), count(*) FILTER (WHERE set_aside_at IS NOT NULL)
FROM diagnostics_outbox;

-- name: read_outbox
-- The oldest changes, each with what else is open at its well. Not those that are set aside until later, nor what came
-- after them at their well.
SELECT o.revision, o.well_id, (o.occurrence || jsonb_build_object('revision', o.revision, 'active', (
           SELECT coalesce(jsonb_agg(jsonb_build_object('diagnosis', a.diagnosis, 'severity', a.severity,
                                                        'state', a.state) ORDER BY a.diagnosis), '[]')
           FROM diagnostic_results a WHERE a.well_id = o.well_id AND a.cleared_at IS NULL)))::text, o.refusals
FROM diagnostics_outbox o
WHERE (o.retry_at IS NULL OR o.retry_at <= now())
  AND NOT EXISTS (
      SELECT FROM diagnostics_outbox held
      WHERE held.well_id = o.well_id AND held.retry_at > now() AND held.retry_at < 'infinity'
  )
ORDER BY o.revision
LIMIT %s;

-- name: delete_published
-- Confirmed by the broker.
DELETE FROM diagnostics_outbox WHERE revision = ANY (%s::bigint[]);

-- name: set_aside_publication
-- The broker refused it. What may be taken later, when somebody has corrected its access list, is tried again after half
-- a minute, then after twice as long each time, up to an hour.
UPDATE diagnostics_outbox
SET set_aside_at = now(), set_aside_reason = %(reason)s, refusals = refusals + 1,
    retry_at = CASE WHEN %(for_good)s THEN 'infinity'
                    ELSE now() + least(INTERVAL '30 seconds' * 2 ^ least(refusals, 7), INTERVAL '1 hour') END
WHERE revision = %(revision)s;

-- name: forget_set_aside
-- What no broker will take is kept for thirty days.
DELETE FROM diagnostics_outbox WHERE retry_at = 'infinity' AND set_aside_at < now() - INTERVAL '30 days';

-- name: lead
-- One daemon of a share group runs the rules, for as long as its connection lives.
SELECT pg_try_advisory_lock(:lead_lock);

-- name: lead_by_transaction
-- The same lock until the end of the transaction, which may wait as long as it likes.
SELECT pg_try_advisory_xact_lock(:lead_lock)
FROM (SELECT set_config('idle_in_transaction_session_timeout', '0', true)) AS s;

-- name: read_cursor
-- How far the rules have come.
SELECT (extract(epoch FROM received_at) * 1000000)::bigint FROM diagnostics_cursor;

-- name: place_cursor
-- The first time: from now on.
INSERT INTO diagnostics_cursor (received_at) VALUES (%s) ON CONFLICT DO NOTHING;

-- name: move_cursor
-- In the transaction of what was evaluated. Nothing is moved where another daemon has moved it meanwhile.
UPDATE diagnostics_cursor SET received_at = %(to)s WHERE received_at = %(from)s;

-- name: report_committed
-- What a member received before this is committed. Members that have been gone for a month are forgotten.
WITH gone AS (
    DELETE FROM share_group_members WHERE committed_to < %(to)s::timestamptz - INTERVAL '30 days' AND member <> %(member)s
)
INSERT INTO share_group_members (member, committed_to) VALUES (%(member)s, %(to)s)
ON CONFLICT (member) DO UPDATE SET committed_to = excluded.committed_to;

-- name: committed_by_others
-- How far the others have come.
SELECT member, (extract(epoch FROM committed_to) * 1000000)::bigint FROM share_group_members WHERE member <> %s;

-- name: withdraw_member
-- Nobody waits for this member until it reports again.
DELETE FROM share_group_members WHERE member = %s;

-- name: received_between
-- What was received after the cursor, all of the last microsecond included, so that the cursor can stand there. The bound
-- on event time keeps to chunks that are not in the columnstore, which knows no order by received_at.
SELECT t.well_id, (extract(epoch FROM t."timestamp") * 1000000)::bigint,
       (extract(epoch FROM t.received_at) * 1000000)::bigint,
       :signals_of_t, t.extra::text, t.quality::text
FROM esp_telemetry t
WHERE t.received_at > %(after)s AND t.received_at <= %(until)s AND t."timestamp" > %(oldest)s
  AND t."timestamp" < '10000-01-01Z'
ORDER BY t.received_at, t."timestamp"
FETCH FIRST %(limit)s ROWS WITH TIES;

-- name: list_rejects
-- Newest first. Every filter may be NULL; the topic is a LIKE pattern.
SELECT received_at, digest, item, topic, topic_bytes, reason, detail, payload, redelivered, replayed_at, replay_outcome
FROM ingest_rejects
WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
  AND (%(topic)s::text IS NULL OR topic LIKE %(topic)s)
  AND (%(since)s::timestamptz IS NULL OR received_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR received_at < %(until)s)
  AND (NOT %(pending)s::boolean OR replayed_at IS NULL)
ORDER BY received_at DESC, digest
LIMIT %(limit)s;

-- name: rejects_after
-- Oldest first, a page at a time, those not replayed yet: for replay.
SELECT received_at, digest, item, topic, topic_bytes, reason, detail, payload, redelivered, replayed_at, replay_outcome
FROM ingest_rejects
WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
  AND (%(topic)s::text IS NULL OR topic LIKE %(topic)s)
  AND (%(since)s::timestamptz IS NULL OR received_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR received_at < %(until)s)
  AND replayed_at IS NULL
  AND (received_at, digest) > (%(after_at)s::timestamptz, %(after_digest)s::uuid)
ORDER BY received_at, digest
LIMIT %(limit)s;

-- name: show_reject
-- One by its key, or the newest with a digest.
SELECT received_at, digest, item, topic, topic_bytes, reason, detail, payload, redelivered, replayed_at, replay_outcome
FROM ingest_rejects
WHERE digest = %(digest)s AND (%(received_at)s::timestamptz IS NULL OR received_at = %(received_at)s)
ORDER BY received_at DESC
LIMIT 1;

-- name: claim_reject
-- Exactly once: of two replays at the same time, the second waits for the first and then finds nothing to claim.
UPDATE ingest_rejects
SET replayed_at = %(now)s, replay_outcome = %(outcome)s
WHERE digest = %(digest)s AND received_at = %(received_at)s AND replayed_at IS NULL;

-- name: demo_wells
-- The demo's table, a row a well. The columns are SHOWN of esp_ingest/demo/screen.py.
SELECT well_id, "timestamp", flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency
FROM well_latest
ORDER BY well_id;

-- name: demo_alarms
-- Open occurrences, the most severe first; events (info) and what is suppressed need nobody's attention.
SELECT well_id, diagnosis, severity, message
FROM active_diagnostics
WHERE severity <> 'info' AND state NOT IN ('suppressed', 'shelved', 'out_of_service')
ORDER BY array_position(ARRAY['critical', 'high', 'medium', 'low'], severity), well_id, diagnosis;

-- name: demo_diagnoses
-- What was raised in all, but for what another diagnosis explains.
SELECT diagnosis, severity, count(*)
FROM diagnostic_results
WHERE state <> 'suppressed'
GROUP BY diagnosis, severity
ORDER BY array_position(ARRAY['critical', 'high', 'medium', 'low', 'info'], severity), count(*) DESC, diagnosis;

-- name: demo_totals
-- What the tables hold.
SELECT (SELECT count(*) FROM esp_telemetry),
       (SELECT count(*) FROM ingest_rejects),
       (SELECT count(*) FROM diagnostic_results);

-- name: reporting_wells
-- Every well that has a reading, one probe of the primary key each.
WITH RECURSIVE found (well_id) AS (
    (SELECT well_id FROM esp_telemetry ORDER BY well_id LIMIT 1)
    UNION ALL
    SELECT (SELECT e.well_id FROM esp_telemetry e WHERE e.well_id > f.well_id ORDER BY e.well_id LIMIT 1)
    FROM found f
    WHERE f.well_id IS NOT NULL
)
SELECT well_id FROM found WHERE well_id IS NOT NULL;

-- name: readings_between
-- Rules on trial: what these wells sent in a span of event time, well by well.
SELECT t.well_id, (extract(epoch FROM t."timestamp") * 1000000)::bigint,
       (extract(epoch FROM t.received_at) * 1000000)::bigint,
       :signals_of_t, t.extra::text, t.quality::text
FROM esp_telemetry t
WHERE t.well_id = ANY (%(wells)s::text[]) AND t."timestamp" >= %(since)s AND t."timestamp" < %(until)s
ORDER BY t.well_id, t."timestamp";

-- Lifecycle. Where {braces} stand, esp_ingest/lifecycle fills in names of a table and its columns by psycopg.sql.

-- name: lifecycle_session
-- A day's export may take as long as it takes; a lock on a table may not. Parallel workers would take every core from the
-- session of the daemon, which has the first right to one.
SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '10s', false),
       set_config('idle_in_transaction_session_timeout', '0', false),
       set_config('max_parallel_workers_per_gather', '0', false);

-- name: lifecycle_lock
-- One run at a time: held by the session, so it ends with the connection.
SELECT pg_try_advisory_lock(:lifecycle_lock);

-- name: lifecycle_clock
-- Who this database is, its clock, the clock at the last run, and the schema's version.
SELECT id, clock_timestamp(), last_run, (SELECT max(number) FROM esp_ingest_migrations) FROM archive_identity;

-- name: lifecycle_ran
-- How far the clock is now.
UPDATE archive_identity SET last_run = clock_timestamp();

-- name: lifecycle_aggregates_span
-- Between which times hours may be gathered: after the last day that was dropped, since a part of a day would replace the
-- whole of it; and up to the last full hour, with a delay for what is on its way.
SELECT coalesce((SELECT (max(day) + 1)::timestamp AT TIME ZONE 'UTC' FROM archive_days
                 WHERE relation = 'esp_telemetry' AND dropped_at IS NOT NULL), '-infinity')::text,
       greatest(date_bin(INTERVAL '1 hour', now() - INTERVAL '5 minutes', TIMESTAMPTZ '2000-01-01 00:00:00Z'),
                s.hours_to)::text
FROM aggregate_state s;

-- name: lifecycle_aggregates_changed
-- Full hours that hold another number of readings than when they were gathered, by day: first and last of each.
WITH held AS (
    SELECT date_bin(INTERVAL '1 hour', "timestamp", TIMESTAMPTZ '2000-01-01 00:00:00Z') AS bucket, count(*) AS rows
    FROM esp_telemetry
    WHERE "timestamp" >= %(since)s AND "timestamp" < %(until)s AND isfinite("timestamp")
    GROUP BY 1
)
SELECT min(held.bucket), max(held.bucket)
FROM held
LEFT JOIN aggregate_seen seen ON seen.bucket = held.bucket
WHERE seen.rows IS DISTINCT FROM held.rows
GROUP BY date_bin(INTERVAL '1 day', held.bucket, TIMESTAMPTZ '2000-01-01 00:00:00Z')
ORDER BY 1;

-- name: lifecycle_aggregates_see
-- Before hours are gathered, how many readings they hold: those that come meanwhile show in the next run.
INSERT INTO aggregate_seen (bucket, rows)
SELECT date_bin(INTERVAL '1 hour', "timestamp", TIMESTAMPTZ '2000-01-01 00:00:00Z'), count(*)
FROM esp_telemetry
WHERE "timestamp" >= %(since)s AND "timestamp" < %(until)s AND isfinite("timestamp")
GROUP BY 1
ON CONFLICT (bucket) DO UPDATE SET rows = excluded.rows;

-- name: lifecycle_aggregates_hours
-- Gather hours anew. Readings are only ever added, so each row that is there already is gathered again.
INSERT INTO aggregate_hours
SELECT * FROM aggregated_hours(%(since)s, %(until)s)
ON CONFLICT (well_id, bucket) DO UPDATE SET {assignments};

-- name: lifecycle_aggregates_days
-- Gather days anew, from the hours that are kept.
INSERT INTO aggregate_days
SELECT * FROM aggregated_days(%(since)s, %(until)s)
ON CONFLICT (well_id, bucket) DO UPDATE SET {assignments};

-- name: lifecycle_aggregates_hours_to
-- Hours before this time are kept. Never back, also if the clock was set back.
UPDATE aggregate_state SET hours_to = greatest(hours_to, %(until)s::timestamptz);

-- name: lifecycle_fleet_changed
-- Full hours of the fleet that do not hold as many readings as the hours of its wells, by day: first and last of each.
SELECT min(seen.bucket), max(seen.bucket)
FROM aggregate_seen seen
LEFT JOIN aggregate_fleet_hours fleet ON fleet.bucket = seen.bucket
WHERE fleet.count IS DISTINCT FROM seen.rows AND seen.bucket < (SELECT hours_to FROM aggregate_state)
GROUP BY date_bin(INTERVAL '1 day', seen.bucket, TIMESTAMPTZ '2000-01-01 00:00:00Z')
ORDER BY 1;

-- name: lifecycle_fleet_hours
-- Gather hours of the fleet anew, from the hours of its wells.
INSERT INTO aggregate_fleet_hours
SELECT * FROM aggregated_fleet_hours(%(since)s, %(until)s)
ON CONFLICT (bucket) DO UPDATE SET {assignments};

-- name: lifecycle_fleet_to
-- Hours of the fleet before this time are kept. To be set in the transaction that keeps them.
UPDATE aggregate_state SET fleet_to = greatest(fleet_to, %(until)s::timestamptz);

-- name: lifecycle_aggregates_to
-- How far all of them are.
UPDATE aggregate_state
SET hours_to = greatest(hours_to, %(until)s::timestamptz),
    days_to = greatest(days_to, date_bin(INTERVAL '1 day', %(until)s::timestamptz, TIMESTAMPTZ '2000-01-01 00:00:00Z')),
    alarms_to = greatest(alarms_to, %(until)s::timestamptz);

-- name: lifecycle_aggregates_alarms_since
-- From when hours in alarm are gathered: all the first time, then the last 8 days before what was gathered. Never in a day
-- whose occurrences were dropped. NULL: there is none.
SELECT nullif(greatest(alarms_to - INTERVAL '8 days',
                (SELECT (max(day) + 1)::timestamp AT TIME ZONE 'UTC' FROM archive_days
                 WHERE relation = 'diagnostic_results' AND dropped_at IS NOT NULL),
                (SELECT date_bin(INTERVAL '1 hour', min("timestamp"), TIMESTAMPTZ '2000-01-01 00:00:00Z')
                 FROM diagnostic_results WHERE isfinite("timestamp"))), '-infinity')
FROM aggregate_state;

-- name: lifecycle_aggregates_alarms_clear
-- An occurrence that cleared earlier than it was thought leaves hours without alarm.
DELETE FROM aggregate_alarm_hours WHERE bucket >= %(since)s AND bucket < %(until)s;

-- name: lifecycle_aggregates_alarms
-- Gather hours in alarm anew.
INSERT INTO aggregate_alarm_hours SELECT * FROM aggregated_alarm_hours(%(since)s, %(until)s);

-- name: lifecycle_aggregates_expire
-- Rows of aggregates that have been kept long enough.
DELETE FROM {table} WHERE bucket < now() - %(keep_days)s * INTERVAL '1 day';

-- name: lifecycle_columns
-- The columns of a table with their types.
SELECT attname, atttypid::bigint, format_type(atttypid, NULL)
FROM pg_attribute
WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped
ORDER BY attnum;

-- name: lifecycle_days
-- Days with rows, numbered from 1970-01-01, with what shows a change.
SELECT ({time} AT TIME ZONE 'UTC')::date - DATE '1970-01-01', count(*), coalesce(max({changed})::text, ''), '', ''
FROM {table}
WHERE isfinite({time})
GROUP BY 1
ORDER BY 1;

-- name: lifecycle_days_summed
-- As lifecycle_days, for tables whose rows change: with the two halves of the checksum.
SELECT day, count(*), '', sum(('x' || substr(hash, 1, 16))::bit(64)::bigint)::text,
       sum(('x' || substr(hash, 17))::bit(64)::bigint)::text
FROM (
    SELECT ({time} AT TIME ZONE 'UTC')::date - DATE '1970-01-01' AS day, md5(record_send(ROW({columns}))) AS hash
    FROM {table}
    WHERE isfinite({time})
) AS hashed
GROUP BY 1
ORDER BY 1;

-- name: lifecycle_day_checksum
-- One day: rows, and the two halves of the checksum.
SELECT count(*), coalesce(sum(('x' || substr(hash, 1, 16))::bit(64)::bigint), 0)::text,
       coalesce(sum(('x' || substr(hash, 17))::bit(64)::bigint), 0)::text
FROM (
    SELECT md5(record_send(ROW({columns}))) AS hash
    FROM {table}
    WHERE {time} >= %(start)s AND {time} < %(end)s
) AS hashed;

-- name: lifecycle_oldest_transaction
-- Every transaction before this one has ended.
SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text;

-- name: lifecycle_day_newer
-- Rows of a day, and how many of them were stored or changed by this transaction or a later one. An update stores a new
-- version of the row. After half of all transaction ids an old row may count as a newer one, but never the other way round.
SELECT count(*), count(*) FILTER (WHERE age(xmin) <= age(%(oldest)s::xid))
FROM {table}
WHERE {time} >= %(start)s AND {time} < %(end)s;

-- name: lifecycle_export
-- One day in the order of its file. COLLATE "C" is the order of bytes, which a reader of the file can repeat.
COPY (
    SELECT {columns} FROM {table} WHERE {time} >= {start} AND {time} < {end} ORDER BY {order}
) TO STDOUT (FORMAT binary);

-- name: lifecycle_records
-- What is remembered of each day of a table.
SELECT day, version, id, pending_id, rows, checksum, bytes, held_rows, held_checksum, held_changed, archived_at,
       verified_at, dropped_at, problem
FROM archive_days
WHERE relation = %s
ORDER BY day;

-- name: lifecycle_begin
-- Before a manifest is written: what it will be called.
INSERT INTO archive_days (relation, day, version, pending_id, rows, checksum, bytes, held_rows, held_checksum, held_changed)
VALUES (%(relation)s, %(day)s, 0, %(pending_id)s, 0, '', 0, 0, '', '')
ON CONFLICT (relation, day) DO UPDATE SET pending_id = excluded.pending_id;

-- name: lifecycle_archived
-- After the manifest was written.
UPDATE archive_days
SET version = %(version)s, id = %(id)s, pending_id = NULL, rows = %(rows)s, checksum = %(checksum)s, bytes = %(bytes)s,
    held_rows = %(held_rows)s, held_checksum = %(held_checksum)s, held_changed = %(held_changed)s,
    archived_at = clock_timestamp(), verified_at = NULL, problem = ''
WHERE relation = %(relation)s AND day = %(day)s;

-- name: lifecycle_verified
-- The archive was read back and is whole.
UPDATE archive_days SET verified_at = clock_timestamp(), problem = '' WHERE relation = %s AND day = %s;

-- name: lifecycle_problem
-- What is wrong with a day. A day that was never archived gets a row too.
INSERT INTO archive_days (relation, day, version, rows, checksum, bytes, held_rows, held_checksum, held_changed, problem)
VALUES (%(relation)s, %(day)s, 0, 0, '', 0, 0, '', '', %(problem)s)
ON CONFLICT (relation, day) DO UPDATE
SET problem = excluded.problem,
    verified_at = CASE WHEN %(is_unproven)s THEN NULL ELSE archive_days.verified_at END,
    held_rows = CASE WHEN %(is_old)s THEN -1 ELSE archive_days.held_rows END;

-- name: lifecycle_dropped
-- In the transaction that dropped the day. What is left are rows that may not go.
INSERT INTO archive_days (relation, day, version, rows, checksum, bytes, held_rows, held_checksum, held_changed, dropped_at)
VALUES (%(relation)s, %(day)s, 0, 0, '', 0, %(held_rows)s, %(held_checksum)s, '', clock_timestamp())
ON CONFLICT (relation, day) DO UPDATE
SET held_rows = excluded.held_rows, held_checksum = excluded.held_checksum, held_changed = '',
    dropped_at = excluded.dropped_at;

-- name: lifecycle_chunks
-- The chunks of a hypertable, oldest first.
SELECT format('%%I.%%I', chunk_schema, chunk_name), range_start, range_end, is_compressed
FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema() AND hypertable_name = %s
ORDER BY range_start;

-- name: lifecycle_is_hypertable
-- A database may have gained the extension after its tables were made.
SELECT EXISTS (
    SELECT FROM timescaledb_information.hypertables
    WHERE hypertable_schema = current_schema() AND hypertable_name = %s
);

-- name: chunk_days
-- Days of readings in a new chunk.
SELECT round(extract(epoch FROM time_interval) / 86400)::integer FROM timescaledb_information.dimensions
WHERE hypertable_schema = current_schema() AND hypertable_name = 'esp_telemetry' AND dimension_number = 1;

-- name: set_chunk_days
-- For chunks that are made from now on.
SELECT set_chunk_time_interval('esp_telemetry', make_interval(days => %(days)s));

-- name: lifecycle_lock_relation
-- Late rows of this chunk wait; readers do not.
LOCK TABLE {relation} IN SHARE ROW EXCLUSIVE MODE;

-- name: lifecycle_drop_chunk
-- The chunk with exactly this range.
SELECT drop_chunks(%(relation)s::regclass, older_than => %(end)s, newer_than => %(start)s);

-- name: lifecycle_delete_day
-- Deletes what may go of a day, and says what there was: rows and checksum of what went, rows and checksum of what stays.
-- Only rows that this statement sees are deleted, so a late row is either in the sum or still there afterwards.
WITH gone AS (
    DELETE FROM {table}
    WHERE {time} >= %(start)s AND {time} < %(end)s AND ({droppable})
    RETURNING md5(record_send(ROW({columns}))) AS hash
),
hashed AS (
    SELECT hash, true AS goes FROM gone
    UNION ALL
    SELECT md5(record_send(ROW({columns}))), false
    FROM {table}
    WHERE {time} >= %(start)s AND {time} < %(end)s AND NOT ({droppable})
)
SELECT count(*) FILTER (WHERE goes),
       coalesce(sum(('x' || substr(hash, 1, 16))::bit(64)::bigint) FILTER (WHERE goes), 0)::text,
       coalesce(sum(('x' || substr(hash, 17))::bit(64)::bigint) FILTER (WHERE goes), 0)::text,
       count(*) FILTER (WHERE NOT goes),
       coalesce(sum(('x' || substr(hash, 1, 16))::bit(64)::bigint) FILTER (WHERE NOT goes), 0)::text,
       coalesce(sum(('x' || substr(hash, 17))::bit(64)::bigint) FILTER (WHERE NOT goes), 0)::text
FROM hashed;

-- name: lifecycle_has_rows
-- Is there a row in this time?
SELECT EXISTS (SELECT FROM {table} WHERE {time} >= %(start)s AND {time} < %(end)s);

-- name: lifecycle_restore
-- A page of archived rows, columns as arrays. What is there already stays as it is.
INSERT INTO {target} ({columns})
SELECT {columns} FROM unnest({arrays}) AS archived ({columns})
ON CONFLICT DO NOTHING;

-- name: lifecycle_restore_into
-- A table like the source, for restored rows.
CREATE TABLE IF NOT EXISTS {target} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES);

-- name: lifecycle_policies
-- Retention policies on our tables: none should be there, since a policy cannot wait for an archive.
SELECT hypertable_name FROM timescaledb_information.jobs
WHERE proc_name = 'policy_retention'
  AND hypertable_name IN ('esp_telemetry', 'diagnostic_results', 'ingest_rejects');

-- name: lifecycle_table
-- Rows of a table, its oldest row, and the oldest one that may be dropped.
SELECT count(*), min({time}), min({time}) FILTER (WHERE {droppable}) FROM {table} WHERE isfinite({time});

-- name: lifecycle_unproven
-- The oldest finished day without a proven copy.
SELECT min(held.day)
FROM (SELECT DISTINCT ({time} AT TIME ZONE 'UTC')::date AS day FROM {table} WHERE isfinite({time}) AND {time} < %(until)s)
     AS held
LEFT JOIN archive_days AS archived ON archived.relation = %(relation)s AND archived.day = held.day
WHERE archived.verified_at IS NULL;

-- name: lifecycle_plain_size
-- Bytes of a plain table with its indexes and TOAST; no chunks.
SELECT pg_total_relation_size(to_regclass(%s)), 0, 0;

-- name: lifecycle_hypertable_size
-- Bytes of a hypertable with all that belongs to it, its chunks, and how many of them are compressed.
SELECT hypertable_size(to_regclass(%(relation)s)), count(chunk_name), count(*) FILTER (WHERE is_compressed)
FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema() AND hypertable_name = %(relation)s;

-- name: lifecycle_jobs
-- Background jobs on our tables: name, seconds since the last success, whether the last run failed.
SELECT job.proc_name || ' ' || job.hypertable_name,
       extract(epoch FROM now() - nullif(stats.last_successful_finish, '-infinity'))::double precision,
       coalesce(stats.last_run_status = 'Failed', false)
FROM timescaledb_information.jobs AS job
LEFT JOIN timescaledb_information.job_stats AS stats USING (job_id)
WHERE job.hypertable_name IN ('esp_telemetry', 'diagnostic_results', 'ingest_rejects');

-- name: lifecycle_rights
-- What this user may not read of what `check` looks at, as the GRANT that lets it.
SELECT format('GRANT SELECT ON %s TO %I', string_agg(relation, ', ' ORDER BY relation), current_user)
FROM unnest('{esp_telemetry,diagnostic_results,ingest_rejects,archive_days,archive_sizes,backup_drills}'::text[]) AS needed (relation)
WHERE NOT has_table_privilege(to_regclass(relation), 'SELECT');

-- name: lifecycle_note_size
-- How large the database is today.
INSERT INTO archive_sizes (day, bytes) VALUES ((now() AT TIME ZONE 'UTC')::date, pg_database_size(current_database()))
ON CONFLICT (day) DO UPDATE SET bytes = excluded.bytes;

-- name: lifecycle_database_size
-- Bytes of the database now, and its growth in bytes a day since the oldest size of the last 7 days, NULL on the first.
WITH now_bytes AS (SELECT pg_database_size(current_database()) AS bytes)
SELECT now_bytes.bytes,
       (SELECT (now_bytes.bytes - older.bytes)::double precision / ((now() AT TIME ZONE 'UTC')::date - older.day)
        FROM archive_sizes AS older
        WHERE older.day BETWEEN (now() AT TIME ZONE 'UTC')::date - 7 AND (now() AT TIME ZONE 'UTC')::date - 1
        ORDER BY older.day LIMIT 1)
FROM now_bytes;

-- name: lifecycle_view
-- For DuckDB: a table as `lifecycle query` sees it.
CREATE VIEW {view} AS
SELECT {columns} FROM {archived}
UNION ALL
SELECT {columns} FROM {stored};

-- name: lifecycle_view_of_both
-- For DuckDB: as lifecycle_view, where a day has rows in both places. What the database says of a key counts.
CREATE VIEW {view} AS
SELECT {columns} FROM {archived} ANTI JOIN (SELECT {key} FROM {stored}) AS newer USING ({key})
UNION ALL
SELECT {columns} FROM {stored};

-- Drill of the backup.

-- name: drill_recovery
-- Of the copy: the time of the newest transaction that was replayed, and the WAL segment that its end lies in.
SELECT pg_last_xact_replay_timestamp(), pg_walfile_name(pg_last_wal_replay_lsn());

-- name: drill_timescaledb
-- The version of TimescaleDB that the copy needs.
SELECT extversion FROM pg_extension WHERE extname = 'timescaledb';

-- name: drill_missing
-- How many archived rows of a day, restored beside their table, are not in it as they were.
SELECT count(*) FROM (
    SELECT record_send(ROW({compared})) FROM {archived} WHERE {time} >= %(start)s AND {time} < %(end)s
    EXCEPT
    SELECT record_send(ROW({compared})) FROM {table} WHERE {time} >= %(start)s AND {time} < %(end)s
) AS missing;

-- name: drill_note
-- How a drill went.
INSERT INTO backup_drills (seconds, problem, backup, repository, backup_at, recovered_at, days, rows)
VALUES (%(seconds)s, %(problem)s, %(backup)s, %(repository)s, %(backup_at)s, %(recovered_at)s, %(days)s, %(rows)s);

-- name: drill_last
-- The last good drill's end, and of the last drill: seconds, whether it failed, when its backup was made, days compared.
SELECT (SELECT max(ended_at) FROM backup_drills WHERE problem = ''), seconds, problem, backup_at, days
FROM backup_drills
ORDER BY ended_at DESC
LIMIT 1;

-- name: drill_archiver
-- Does the server archive its WAL, and did the last segment fail?
SELECT current_setting('archive_mode') <> 'off',
       coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)
FROM pg_stat_archiver;
