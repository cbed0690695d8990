"""The on-disk spool: batches that wait for the database."""
