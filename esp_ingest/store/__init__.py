"""Store: migrations, the COPY ladder, the on-disk spool and named queries."""
