"""The schema of a database as comparable text, out of the catalogs."""

from tests.support.databases import Database

_DUMP = {
    "columns": """
        SELECT table_name, ordinal_position, column_name, data_type, is_nullable, column_default
        FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name IN (
            SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND NOT EXISTS (
                SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'))
    """,
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    """,
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
    "functions": """
        SELECT p.proname, pg_get_functiondef(p.oid) FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.prokind IN ('f', 'p') AND NOT EXISTS (
            SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    """,
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger
        WHERE NOT tgisinternal AND tgrelid::regclass::text NOT LIKE '\\_timescaledb%%'
    """,
}
_TIMESCALE = {
    "dimensions": """
        SELECT hypertable_name, column_name, time_interval::text FROM timescaledb_information.dimensions
        WHERE hypertable_schema = 'public'
    """,
    "policies": """
        SELECT hypertable_name, proc_name, (config - 'hypertable_id')::text, schedule_interval::text
        FROM timescaledb_information.jobs WHERE hypertable_name IS NOT NULL
    """,
}
_COLUMNSTORE = {
    "columnstore": """
        SELECT hypertable::text, segmentby, orderby FROM timescaledb_information.hypertable_columnstore_settings
    """
}


def dump(database: Database) -> list[str]:
    """Every object of ours, a line each, sorted. The ledger's rows are left out: they say how it came about."""
    queries = dict(_DUMP)
    if database.value("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"):
        queries |= _TIMESCALE
        if database.value("SELECT current_setting('timescaledb.license')") == "timescale":
            queries |= _COLUMNSTORE
    return sorted(f"{kind}: {row}" for kind, text in queries.items() for row in database.all(text))
