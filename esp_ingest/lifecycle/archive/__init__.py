"""The archive: each day of a table lies in Parquet files with a manifest, which are written, verified and read back
here."""
