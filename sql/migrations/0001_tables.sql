-- The three tables of the contract. Every timestamp is timestamptz, every key NOT NULL.

-- One row a reading. The primary key serves a well's history and makes writing again harmless: the first one stored stays.
-- Signals stand in the order of esp_ingest.model.SIGNALS; NULL is "not sent" or, with an entry in quality,
-- "sent, but outside its hard limits".
CREATE TABLE esp_telemetry (
    "timestamp"        timestamptz NOT NULL,
    well_id            text NOT NULL,
    flow_rate          double precision, -- bbl/d
    pip                double precision, -- psi
    motor_current      double precision, -- A
    motor_temp         double precision, -- °F
    vibration          double precision, -- in/s
    vsd_frequency      double precision, -- Hz
    gor                double precision, -- scf/bbl
    discharge_pressure double precision, -- psi
    wellhead_pressure  double precision, -- psi
    casing_pressure    double precision, -- psi
    intake_temp        double precision, -- °F
    leakage_current    double precision, -- mA
    drive_voltage      double precision, -- V
    extra              jsonb,            -- keys that nobody declared
    quality            jsonb,            -- values as sent that are outside their hard limits
    received_at        timestamptz NOT NULL,
    PRIMARY KEY (well_id, "timestamp")
);

-- The time range over all wells. It has the name that create_hypertable would give its default index, which is
-- therefore switched off in 0002.
CREATE INDEX esp_telemetry_timestamp_idx ON esp_telemetry ("timestamp" DESC);

-- One row an occurrence, keyed by when it was raised in event time; upserted while it lives.
CREATE TABLE diagnostic_results (
    "timestamp"        timestamptz NOT NULL,
    well_id            text NOT NULL,
    diagnosis          text NOT NULL,
    severity           text NOT NULL CHECK (severity IN ('critical', 'high', 'medium', 'low', 'info')),
    state              text NOT NULL,
    cleared_at         timestamptz,
    value              double precision,
    threshold          double precision,
    peak               double precision,
    occurrences        integer NOT NULL,
    confidence         double precision,
    message            text NOT NULL,
    actions            jsonb NOT NULL,
    telemetry_snapshot jsonb NOT NULL,
    PRIMARY KEY (well_id, diagnosis, "timestamp")
);

-- An operator's question: what of this severity, newest first.
CREATE INDEX diagnostic_results_severity_idx ON diagnostic_results (severity, "timestamp" DESC);

-- What is open now: few rows among many, read at every start of the daemon and by active_diagnostics.
CREATE INDEX diagnostic_results_open_idx ON diagnostic_results (well_id) WHERE cleared_at IS NULL;

-- What could not be a reading, byte for byte. digest is over topic, payload and item. The key begins with it so that one
-- index answers both "is this very row stored?" (a batch written again) and "was this content stored?" (a redelivery).
CREATE TABLE ingest_rejects (
    received_at    timestamptz NOT NULL,
    digest         uuid NOT NULL,
    item           integer NOT NULL,  -- place in an array, else 0
    topic          text NOT NULL,     -- what is not UTF-8 as \xNN
    topic_bytes    bytea,             -- the topic as received, only where the text cannot say it
    reason         text NOT NULL,
    detail         text NOT NULL,
    payload        bytea NOT NULL,
    redelivered    boolean NOT NULL,
    replayed_at    timestamptz,
    replay_outcome text,
    PRIMARY KEY (digest, received_at)
);

-- `rejects list`: newest first.
CREATE INDEX ingest_rejects_received_at_idx ON ingest_rejects (received_at DESC);
