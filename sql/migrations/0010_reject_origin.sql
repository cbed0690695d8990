-- Which message a reject came from, so that a redelivery of it can be told from the same rubbish sent anew: the connection
-- that delivered it (a number that no other has) and its packet id, which a broker keeps when it sends a message again.
-- -1: not known, as of the rejects before this migration.
ALTER TABLE ingest_rejects ADD COLUMN connection bigint NOT NULL DEFAULT -1;
ALTER TABLE ingest_rejects ADD COLUMN packet_id integer NOT NULL DEFAULT 0;
