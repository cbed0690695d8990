-- Changes of occurrences on their way to the broker, written in the transaction that made them and removed when the
-- broker has confirmed them. Usually empty.
CREATE TABLE diagnostics_outbox (
    revision   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    well_id    text NOT NULL,
    occurrence jsonb NOT NULL
);

-- An occurrence as consumers get it: the row, times in RFC 3339 UTC, and an id that is the same for all of its life.
CREATE FUNCTION diagnostics_message(d diagnostic_results) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
               'id', md5(d.well_id || '/' || d.diagnosis || '/' || (extract(epoch FROM d."timestamp") * 1000000)::bigint)
           )
        || to_jsonb(d)
        || jsonb_build_object(
               'timestamp', to_char(d."timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
               'cleared_at', to_char(d.cleared_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
           )
$$;
