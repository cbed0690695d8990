-- Run once, by a superuser, in the database of esp-ingest, before `esp-ingest migrate`. The owner of the tables: it migrates, archives
-- and drops, and makes users of the API. It is no superuser, and nobody else may create anything where the tables are.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'esp_ingest_owner') THEN
        CREATE ROLE esp_ingest_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
    END IF;
    EXECUTE format('ALTER DATABASE %I OWNER TO esp_ingest_owner', current_database());
    EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    -- What a session resolves a name by: the tables' schema, and temporary tables only after it.
    EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_temp', current_database());
END $$;
ALTER SCHEMA public OWNER TO esp_ingest_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
-- Nothing here uses large objects, and whoever may connect could fill the disk with them.
REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC;
