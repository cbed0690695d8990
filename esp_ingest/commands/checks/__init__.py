"""What `esp-ingest check` looks at that takes more than a few lines."""
