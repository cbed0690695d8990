-- Who may use the HTTP API, what they did, and what operators think of alarms. No secret is stored: passwords as argon2id,
-- tokens as SHA-256 of 256 random bits.

-- Local users. ``wells`` are patterns of the well ids that a user may see; * stands for any text.
CREATE TABLE api_users (
    name          text PRIMARY KEY,
    password_hash text NOT NULL,
    role          text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    wells         text[] NOT NULL DEFAULT '{*}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    disabled_at   timestamptz
);

-- Refresh tokens, each good for one use. All that follow from one sign-in are a family: when one of them is used a second
-- time, somebody has stolen it, and the whole family ends.
CREATE TABLE api_refresh_tokens (
    token_hash bytea PRIMARY KEY,
    family     uuid NOT NULL,
    user_name  text NOT NULL REFERENCES api_users (name) ON DELETE CASCADE,
    issued_at  timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_refresh_tokens_family_idx ON api_refresh_tokens (family);
CREATE INDEX api_refresh_tokens_user_idx ON api_refresh_tokens (user_name);

-- Tokens of machines. They have the role and the wells of their user, and an end.
CREATE TABLE api_tokens (
    token_hash bytea PRIMARY KEY,
    user_name  text NOT NULL REFERENCES api_users (name) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX api_tokens_user_idx ON api_tokens (user_name);

-- Who signed in, was refused, changed a user or an alarm, and from where.
CREATE TABLE api_audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    who     text NOT NULL,
    address text NOT NULL,
    action  text NOT NULL,
    detail  jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX api_audit_at_idx ON api_audit (at DESC);

-- Notes and verdicts belong to the history of an alarm, beside its acknowledgements and shelvings.
ALTER TABLE alarm_actions DROP CONSTRAINT alarm_actions_action_check;
ALTER TABLE alarm_actions ADD CONSTRAINT alarm_actions_action_check
    CHECK (action IN ('ack', 'shelve', 'unshelve', 'note', 'verdict'));
ALTER TABLE alarm_actions ADD COLUMN detail jsonb NOT NULL DEFAULT '{}';
CREATE INDEX alarm_actions_alarm_idx ON alarm_actions (well_id, diagnosis);

-- What an operator says of an occurrence, the last word only: alarm_actions has them all.
CREATE TABLE alarm_verdicts (
    well_id     text NOT NULL,
    diagnosis   text NOT NULL,
    raised_at   timestamptz NOT NULL,
    verdict     text NOT NULL CHECK (verdict IN ('true', 'false', 'unclear')),
    cause       text NOT NULL DEFAULT '',
    stop_reason text NOT NULL DEFAULT '',  -- why the well stopped, where it did
    severity    text NOT NULL,             -- of the occurrence, which retention removes before its verdict
    by_whom     text NOT NULL,
    why         text NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (well_id, diagnosis, raised_at)
);

-- How often a rule was right, of the occurrences that somebody judged. Unclear ones count for neither side.
CREATE VIEW alarm_precision AS
SELECT diagnosis,
       count(*) AS judged,
       count(*) FILTER (WHERE verdict = 'true') AS true_alarms,
       count(*) FILTER (WHERE verdict = 'false') AS false_alarms,
       count(*) FILTER (WHERE verdict = 'unclear') AS unclear,
       count(*) FILTER (WHERE verdict = 'true')::double precision
           / nullif(count(*) FILTER (WHERE verdict IN ('true', 'false')), 0) AS precision
FROM alarm_verdicts
GROUP BY diagnosis;
