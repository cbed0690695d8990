-- works with programs of schema >= 12
-- What operators did to alarms is only added to. Who writes there needs the right UPDATE for the lock (see lock_alarm_actions), and
-- changed or removed what somebody had done by it. The owner of the table still may.
CREATE FUNCTION keep_alarm_actions() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_catalog.pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RAISE EXCEPTION 'permission denied: rows of % are only added', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER alarm_actions_kept
BEFORE UPDATE OR DELETE ON alarm_actions FOR EACH STATEMENT
EXECUTE FUNCTION keep_alarm_actions();
