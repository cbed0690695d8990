-- works with programs of schema >= 12
-- What the lifecycle remembers of each archived day. The archive itself is the truth for reading back; this says what is
-- due, and what a day held when its copy was made, so that a change shows.
CREATE TABLE archive_days (
    relation       text NOT NULL,
    day            date NOT NULL,          -- UTC
    version        integer NOT NULL,       -- of the manifest that counts; 0 while there is none
    id             uuid,                   -- of that writing of the day
    pending_id     uuid,                   -- of a writing that has begun: a crash may have left its manifest
    rows           bigint NOT NULL,        -- in the archive
    checksum       text NOT NULL,          -- of them
    bytes          bigint NOT NULL,        -- of the files
    held_rows      bigint NOT NULL,        -- in the database when this version was made: fewer, once a day was dropped
    held_checksum  text NOT NULL,
    held_changed   text NOT NULL,          -- newest received_at of these rows, as text
    archived_at    timestamptz,
    verified_at    timestamptz,            -- when the archive was last read back and found whole
    dropped_at     timestamptz,
    problem        text NOT NULL DEFAULT '',
    PRIMARY KEY (relation, day)
);

-- Which database this is: written into each manifest, so that two databases never write into one archive. And how far the
-- clock was when the lifecycle last ran.
CREATE TABLE archive_identity (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    id        uuid NOT NULL DEFAULT gen_random_uuid(),
    last_run  timestamptz
);
INSERT INTO archive_identity DEFAULT VALUES;

-- The size of the tables over time, a row a day: how fast they grow.
CREATE TABLE archive_sizes (
    day   date PRIMARY KEY,
    bytes bigint NOT NULL
);
