"""The life of the data after it was stored: archive a finished day, prove the copy, drop it, read it back.

This package stands beside ingest and is never imported by the daemon. It needs the extra ``[archive]``."""
