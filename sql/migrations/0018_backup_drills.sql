-- works with programs of schema >= 12
-- How each drill of the backup went (`esp-ingest lifecycle drill`): the metrics of `lifecycle run` tell the last one's age.
CREATE TABLE backup_drills (
    ended_at     timestamptz PRIMARY KEY DEFAULT clock_timestamp(),
    seconds      double precision NOT NULL,
    problem      text NOT NULL,           -- '' after a good one
    backup       text,                    -- pgBackRest's label; NULL where none was found
    repository   integer,
    backup_at    timestamptz,             -- when that backup was made
    recovered_at timestamptz,             -- newest transaction in the copy
    days         integer NOT NULL,        -- compared with the archive
    rows         bigint NOT NULL
);
