"""The archive: a day in Parquet files with a manifest, written, proven and read back."""
