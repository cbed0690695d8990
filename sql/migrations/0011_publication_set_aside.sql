-- Publications that the broker refused are set aside with the reason, so that the others go on; and of several daemons one
-- publishes at a time, without a lock that lasts while it waits for the broker.
ALTER TABLE diagnostics_outbox
    ADD COLUMN refusals integer NOT NULL DEFAULT 0,
    ADD COLUMN set_aside_at timestamptz,
    ADD COLUMN set_aside_reason text,
    ADD COLUMN retry_at timestamptz;

COMMENT ON COLUMN diagnostics_outbox.set_aside_reason IS 'why the broker did not take it';
COMMENT ON COLUMN diagnostics_outbox.retry_at IS 'not before; infinity: never by itself';

CREATE TABLE diagnostics_publisher (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    holder     text NOT NULL,
    expires_at timestamptz NOT NULL
);
