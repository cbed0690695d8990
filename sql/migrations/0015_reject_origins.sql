-- works with programs of schema >= 12
-- A row for each session on a broker, as client_id@host:port. messages: about how many of its messages were settled, but
-- for long stretches without a reject; its row lock makes two daemons on one session store their rejects one after the
-- other. topic_filter and seen_at tell which daemons write to this database now.
CREATE TABLE mqtt_sessions (
    session      text PRIMARY KEY,
    messages     bigint NOT NULL DEFAULT 0,
    topic_filter text NOT NULL DEFAULT '',
    seen_at      timestamptz
);

-- Rejects that are stored and that the broker may still deliver again: those of the last messages of each session. The
-- rule stands in esp_ingest/store/write/redelivery.py. It replaces the lookup over all of ingest_rejects, whose connection and
-- packet_id stay as information.
CREATE TABLE reject_origins (
    session    text NOT NULL,
    packet_id  integer NOT NULL,
    digest     uuid NOT NULL,    -- as in ingest_rejects
    connection bigint NOT NULL,  -- the last one that brought it
    since      bigint NOT NULL,  -- 0: DUP was not set; else the oldest connection that may have brought it before
    place      bigint NOT NULL,  -- mqtt_sessions.messages when it was stored
    PRIMARY KEY (session, packet_id, digest)
);
CREATE INDEX reject_origins_place_idx ON reject_origins (session, place);
