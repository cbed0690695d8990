"""The commands of `esp-ingest`: each module has add_arguments() and run()."""
