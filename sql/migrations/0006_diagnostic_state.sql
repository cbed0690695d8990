-- What the rules remember of a well (baselines, timers, open occurrences), as the engine exports it. Written a few wells
-- at a time in the transaction of a batch; what came later is replayed from esp_telemetry at the next start.
CREATE TABLE diagnostic_state (
    well_id    text PRIMARY KEY,
    event_time timestamptz NOT NULL,  -- newest reading that the state knows
    saved_at   timestamptz NOT NULL DEFAULT now(),
    state      bytea NOT NULL,
    rules_off  jsonb NOT NULL DEFAULT '{}'  -- rules that cannot run at this well: name to reason
) WITH (fillfactor = 50);

-- The state is compressed already: without this the server would try again on each write.
ALTER TABLE diagnostic_state ALTER COLUMN state SET STORAGE EXTERNAL;

-- Which rules do not run at a well, and why, as of its newest checkpoint.
CREATE VIEW diagnostic_rules_off AS
SELECT s.well_id, off.key AS diagnosis, off.value AS reason, s.saved_at AS as_of
FROM diagnostic_state s
CROSS JOIN LATERAL jsonb_each_text(s.rules_off) AS off;
