-- works with programs of schema >= 12
-- How far each member of a share group has committed what it received. Whoever runs the rules waits for the others, so that what an
-- outage held up in a member's spool is evaluated in its place (decision 0009).
CREATE TABLE share_group_members (
    member       text PRIMARY KEY,
    committed_to timestamptz NOT NULL
);
