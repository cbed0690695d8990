-- works with programs of schema >= 12
-- mark_well_newest_stale() runs as the owner of the tables. A search_path that does not name pg_temp has temporary tables first:
-- a user who may write readings could have put one of his own in the place of well_newest_stale, and have had code run as the owner.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION mark_well_newest_stale() SET search_path = %I, pg_temp', current_schema());
END $$;
